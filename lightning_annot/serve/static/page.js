// The labelling page. An answer can be taken back until the next one is given, some seconds pass, or the page is left; then
// it goes to the outbox, which outlives the page, and from there to the server, again and again until that has it. Sending
// an answer twice changes nothing.
"use strict";
(() => {
  const UNDO_MS = 5000, LOOK_AGAIN_MS = 4000, RETRY_MS = 1500, AHEAD = 2;
  const $ = (id) => document.getElementById(id);
  const hit = Number($("desk").dataset.hit);
  const buttons = [...document.querySelectorAll("#classes button")];
  const words = buttons.map((button) => button.querySelector("span").textContent.toLowerCase());
  const keyed = new Map([...document.querySelectorAll("[data-key]")].map((b) => [b.dataset.key, b]));
  const find = $("find"), picture = $("picture");

  let queue = [], total = 0, place = 0, done = 0;
  let current = null, seen = 0, since = null; // seconds in which the image could be seen
  let pending = null, timer = 0, sending = false, first = -1;
  const answered = new Set();
  let outbox = load("outbox");
  if (load("pending").length) outbox = outbox.concat(load("pending"));
  save();

  function load(name) {
    try { return JSON.parse(localStorage.getItem("annot-" + name)) || []; } catch { return []; }
  }
  function save() {
    try {
      localStorage.setItem("annot-outbox", JSON.stringify(outbox));
      localStorage.setItem("annot-pending", JSON.stringify(pending ? [pending] : []));
    } catch { /* a browser without storage sends at once what it has */ }
  }
  const post = (path, body, more) => fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...more });
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const say = (text) => { $("say").textContent = text; };

  async function send() {
    if (sending) return;
    sending = true;
    while (outbox.length) {
      let status = 0;
      try { status = (await post("/api/answer", outbox[0])).status; } catch { /* the server is away */ }
      if (status === 401) { say("Your link is no longer valid. Ask for a new one."); break; }
      if (status === 0 || status >= 500 || status === 429) { // what is refused otherwise would be refused again
        say("The server does not answer. Your answers are kept here and sent as soon as it does.");
        await wait(RETRY_MS);
        continue;
      }
      outbox.shift();
      save();
    }
    sending = false;
  }

  function commit() {
    clearTimeout(timer);
    if (!pending) return;
    outbox.push(pending);
    pending = null;
    $("undo").disabled = true;
    save();
    send();
  }

  function give(label, reason, name) {
    if (current === null || since === null) return; // not shown yet
    commit();
    pending = { question: current, label, reason, seconds: Math.round(seconds() * 100) / 100 };
    answered.add(current);
    save();
    timer = setTimeout(commit, UNDO_MS);
    $("undo").disabled = false;
    place += 1; done += 1;
    say(name + " – Backspace takes it back");
    advance();
  }

  function undo() {
    if (!pending) { say("Nothing to take back: the last answer is stored."); return; }
    clearTimeout(timer);
    if (current !== null) queue.unshift(current);
    answered.delete(pending.question);
    queue.unshift(pending.question);
    pending = null;
    $("undo").disabled = true;
    save();
    place -= 1; done -= 1;
    say("Taken back. Answer again.");
    advance();
  }

  function advance() {
    current = queue.length ? queue.shift() : null;
    seen = 0; since = null;
    $("choose").hidden = current === null;
    picture.hidden = current === null;
    tell();
    if (current === null) { more(); return; }
    picture.src = "/image/" + current;
    queue.slice(0, AHEAD).forEach((id) => { new Image().src = "/image/" + id; });
    if (find) { find.value = ""; filter(); find.focus({ preventScroll: true }); }
  }

  function tell() {
    $("bar").max = Math.max(1, total);
    $("bar").value = place;
    $("count").textContent = (current === null ? "" : "Image " + (place + 1) + " of " + total + " · ") + done + " done";
  }

  let looking = false;
  async function more() {
    if (looking) return;
    looking = true;
    while (current === null) {
      await send();
      let found = null;
      try {
        const response = await post("/api/next", { n: hit + (pending ? 1 : 0) });
        if (response.status === 401) { say("Your link is no longer valid. Ask for a new one."); break; }
        if (response.ok) found = await response.json();
      } catch { /* the server is away */ }
      if (current !== null) break; // an answer was taken back meanwhile
      if (found) {
        queue = found.questions.filter((id) => !answered.has(id)).slice(0, hit);
        done = found.done + (pending ? 1 : 0);
        total = queue.length; place = 0;
        if (queue.length) { say(""); advance(); break; }
        tell();
        say(found.paused ? "Paused: " + found.paused + "." : "Nothing to label right now. Leave the page open: it looks again.");
      } else {
        say("The server does not answer. This page tries again.");
      }
      await wait(LOOK_AGAIN_MS);
    }
    looking = false;
  }

  const seconds = () => seen + (since === null ? 0 : (performance.now() - since) / 1000);
  picture.addEventListener("load", () => { if (since === null) since = performance.now(); });
  picture.addEventListener("error", () => {
    if (current === null) return;
    say("This image cannot be shown. Skip it.");
    since = performance.now();
  });

  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") leave();
    else { if (current !== null && picture.complete) since = performance.now(); send(); }
  });
  window.addEventListener("pagehide", leave);
  function leave() {
    if (since !== null) { seen = seconds(); since = null; }
    if (!pending && !outbox.length) return;
    if (pending) { clearTimeout(timer); outbox.push(pending); pending = null; $("undo").disabled = true; }
    save(); // sent again when the page comes back, in case this is cut off
    outbox.forEach((answer) => { post("/api/answer", answer, { keepalive: true }).catch(() => {}); });
  }

  function filter() {
    const text = find.value.trim().toLowerCase();
    const score = (word) => (word.startsWith(text) ? 2 : word.split(/[^\p{L}\p{N}]+/u).some((w) => w.startsWith(text)) ? 1 : word.includes(text) ? 0 : -1);
    const scores = words.map(score);
    const best = Math.max(...scores);
    buttons.forEach((button, i) => {
      button.hidden = scores[i] < 0;
      button.style.order = String(2 - scores[i]);
    });
    mark(text && best >= 0 ? scores.indexOf(best) : -1);
    if (text) say(scores.filter((s) => s >= 0).length + " classes match");
  }
  function mark(place) {
    if (first >= 0) buttons[first].classList.remove("first");
    first = place;
    if (first >= 0) { buttons[first].classList.add("first"); buttons[first].scrollIntoView({ block: "nearest" }); }
  }
  function step(by) {
    const shown = buttons.map((b, i) => i).filter((i) => !buttons[i].hidden)
      .sort((a, b) => buttons[a].style.order - buttons[b].style.order || a - b);
    if (shown.length) mark(shown[Math.max(0, Math.min(shown.length - 1, shown.indexOf(first) + by))]);
  }

  buttons.forEach((b) => b.addEventListener("click", () => give(b.dataset.label, null, b.querySelector("span").textContent)));
  document.querySelectorAll("[data-reason]").forEach((b) =>
    b.addEventListener("click", () => give(null, b.dataset.reason, b.firstChild.textContent.trim())));
  $("undo").addEventListener("click", undo);
  if (find) find.addEventListener("input", filter);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key !== "Backspace" && !event.key.startsWith("Arrow")) return;
    const typing = find && document.activeElement === find;
    if (event.key === "Backspace" && !(typing && find.value)) { if (!event.repeat) undo(); event.preventDefault(); return; }
    if (typing && event.key === "Enter") { if (first >= 0) buttons[first].click(); event.preventDefault(); return; }
    if (typing && event.key === "Escape") { find.value = ""; filter(); return; }
    if (typing && event.key === "ArrowDown") { step(1); event.preventDefault(); return; }
    if (typing && event.key === "ArrowUp") { step(-1); event.preventDefault(); return; }
    if (typing && find.value) return;
    const button = keyed.get(event.key) || keyed.get(event.key.toLowerCase());
    if (button && event.key) { button.click(); event.preventDefault(); return; }
    if (find && !typing && event.key.length === 1 && event.key !== " ") find.focus();
  });
  more();
})();
