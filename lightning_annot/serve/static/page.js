// The labelling page. An answer can be taken back until the next one is given, some seconds pass, or the page is left; then
// it goes to the outbox, which outlives the page, and from there to the server, again and again until that has it. Sending
// an answer twice changes nothing. At the last image of a HIT the next HIT is fetched, so that nobody waits between the two.
"use strict";
(() => {
  const UNDO_MS = 5000, LOOK_AGAIN_MS = 4000, RETRY_MS = 1500, AHEAD = 2, CRISP = 64;
  const $ = (id) => document.getElementById(id);
  const hit = Number($("desk").dataset.hit), run = $("desk").dataset.run;
  const me = run + "-" + JSON.stringify($("desk").dataset.worker) + "-"; // another run's questions have the same numbers
  const buttons = [...document.querySelectorAll("#classes button")];
  const names = buttons.map((button) => button.querySelector("span").textContent);
  const words = names.map((name) => name.toLowerCase());
  const keyed = new Map([...document.querySelectorAll("[data-key]")].map((b) => [b.dataset.key, b]));
  const find = $("find"), picture = $("picture"), examples = $("examples");
  const touch = matchMedia("(hover: none) and (pointer: coarse)").matches; // there a focused field calls up a keyboard

  let queue = [], following = [], total = 0, place = 0, done = 0, of = 0;
  let current = null, seen = 0, since = null; // seconds in which the image could be seen
  let pending = null, timer = 0, sending = false, first = -1, closed = false, tries = 0;
  const answered = new Set(), ahead = new Map(); // images that are being loaded, by question
  // A browser without storage sends at once what it has. The outbox has a key an answer: tabs do not overwrite each other's.
  // What may be taken back is the tab's alone.
  const OUT = "annot-outbox-" + me, PENDING = "annot-pending-" + me;
  const outbox = load();
  save();

  function load() {
    try {
      const left = JSON.parse(sessionStorage.getItem(PENDING));
      if (left) keep(left);
      return Object.keys(localStorage).filter((key) => key.startsWith(OUT)).map((key) => JSON.parse(localStorage.getItem(key)));
    } catch { return []; }
  }
  function keep(answer) {
    try { localStorage.setItem(OUT + answer.question, JSON.stringify(answer)); } catch { /* see above */ }
  }
  function drop(answer) {
    try { localStorage.removeItem(OUT + answer.question); } catch { /* see above */ }
  }
  function save() {
    try { sessionStorage.setItem(PENDING, JSON.stringify(pending)); } catch { /* see above */ }
  }
  const post = (path, body, more) => fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...more });
  const address = (question) => "/image/" + question + "?run=" + run;
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const say = (text) => { $("say").textContent = text; };
  function close() { closed = true; say("Your link is no longer valid. Ask for a new one."); }

  async function send() {
    if (sending) return;
    sending = true;
    while (outbox.length && !closed) {
      let status = 0, pause = RETRY_MS;
      try {
        const response = await post("/api/answer", outbox[0]);
        pause = Math.max(pause, 1000 * (Number(response.headers.get("retry-after")) || 0));
        if ((response.headers.get("content-type") || "").startsWith("application/json")) status = response.status; // ours
      } catch { /* the server is away */ }
      if (status === 401) { close(); break; }
      if (status === 0 || status >= 500 || status === 429) { // what is refused otherwise would be refused again
        say("The server does not answer. Your answers are kept here and sent as soon as it does.");
        await wait(pause);
        continue;
      }
      if (status >= 400) say("An answer was refused: it is not yours to give any more.");
      drop(outbox.shift());
    }
    sending = false;
  }

  function commit() {
    clearTimeout(timer);
    if (!pending) return;
    toOutbox();
    send();
  }

  function toOutbox() {
    outbox.push(pending);
    keep(pending);
    pending = null;
    $("undo").disabled = true;
    save();
  }

  function give(label, reason, name) {
    if (current === null || since === null || examples.open) return; // not shown yet
    commit();
    pending = { question: current, label, reason, seconds: Math.min(86400, Math.round(seconds() * 100) / 100) };
    answered.add(current);
    save();
    timer = setTimeout(commit, UNDO_MS);
    $("undo").disabled = false;
    place += 1; done += 1;
    say(name + (touch ? " – Undo takes it back" : " – Backspace takes it back"));
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
    if (place > 0) place -= 1; else total += 1; // back over the border of two HITs
    done -= 1;
    say("Taken back. Answer again.");
    advance();
  }

  function advance() {
    if (!queue.length && following.length) begin(following);
    current = queue.length ? queue.shift() : null;
    seen = 0; since = null; tries = 0;
    $("choose").hidden = current === null;
    picture.hidden = current === null;
    tell();
    if (current === null) { more(); return; }
    picture.dataset.question = current;
    picture.src = address(current);
    for (const id of ahead.keys()) if (!queue.includes(id) && !following.includes(id)) ahead.delete(id);
    preload(queue);
    if (!queue.length) prepare();
    if (find) { find.value = ""; filter(); if (!touch) find.focus({ preventScroll: true }); }
  }

  function begin(questions) {
    queue = questions; following = [];
    total = queue.length; place = 0;
  }

  function preload(questions) {
    questions.slice(0, AHEAD).forEach((id) => {
      if (ahead.has(id)) return;
      const image = new Image();
      image.src = address(id);
      ahead.set(id, image); // kept, or it might be thrown away before it is there
    });
  }

  function tell() {
    $("bar").max = of || Math.max(1, total);
    $("bar").value = of ? done : place;
    const here = current === null ? "" : "Image " + (place + 1) + " of " + total + " · ";
    $("count").textContent = of ? done + " of " + of + " done" : here + done + " done";
  }

  // Up to a HIT of questions that are not here yet; null if the server does not say.
  async function ask() {
    const here = new Set([current, ...queue, ...answered]);
    const open = queue.length + (current === null ? 0 : 1) + (pending ? 1 : 0) + outbox.length; // lent, and not answered there
    try {
      const response = await post("/api/next", { n: hit + Math.min(open, hit) });
      if (response.status === 401) close();
      if (!response.ok) return null;
      const found = await response.json();
      of = found.of;
      return { ...found, questions: found.questions.filter((id) => !here.has(id)).slice(0, hit) };
    } catch { return null; /* the server is away */ }
  }

  async function prepare() {
    const found = await ask();
    if (!found || following.length || current === null) return;
    const here = new Set([current, ...queue, ...answered]);
    following = found.questions.filter((id) => !here.has(id));
    preload(following);
  }

  let looking = false;
  async function more() {
    if (looking) return;
    looking = true;
    while (current === null && !closed) {
      await send();
      const found = await ask();
      if (current !== null || closed) break; // an answer was taken back meanwhile
      if (found) {
        done = found.done + (pending ? 1 : 0);
        if (found.questions.length) { begin(found.questions); say(""); advance(); break; }
        tell();
        if (found.paused) say("Paused: " + found.paused + ".");
        else if (of && done >= of) say("That was all. Thank you!");
        else say("Nothing to label right now. Leave the page open: it looks again.");
      } else if (!closed) {
        say("The server does not answer. This page tries again.");
      }
      await wait(LOOK_AGAIN_MS);
    }
    looking = false;
  }

  const seconds = () => seen + (since === null ? 0 : (performance.now() - since) / 1000);
  picture.addEventListener("load", () => {
    picture.classList.toggle("crisp", Math.max(picture.naturalWidth, picture.naturalHeight) <= CRISP);
    if (since === null) since = performance.now();
    picture.dataset.shown = current;
  });
  picture.addEventListener("error", async () => {
    if (current === null) return;
    const question = current, away = tries >= 3 && await isAway(address(question));
    if (current !== question) return; // answered, or taken back, meanwhile
    if (tries < 3 || away) { // the server may be starting anew, or wait for the log
      tries += 1;
      if (away) say("The server does not answer. This page tries again.");
      setTimeout(() => { if (current === question) picture.src = address(question) + "&again=" + tries; }, Math.min(700 * tries, LOOK_AGAIN_MS));
      return;
    }
    say("This image cannot be shown. Skip it.");
    since = performance.now();
  });

  async function isAway(path) {
    try { return (await fetch(path)).status >= 500; } catch { return true; }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") leave();
    else { if (current !== null && picture.complete) since = performance.now(); send(); }
  });
  window.addEventListener("pagehide", leave);
  function leave() {
    if (since !== null) { seen = seconds(); since = null; }
    if (!pending && !outbox.length) return;
    if (pending) { clearTimeout(timer); toOutbox(); }
    // sent again when the page comes back, in case this is cut off
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
    if (!text) { $("classes").scrollTop = 0; return; }
    const matching = scores.filter((s) => s >= 0).length;
    say(matching === 0 ? "No class matches." : matching === 1 ? names[first] + " – Enter takes it" : matching + " classes match");
  }
  function mark(place) {
    if (first >= 0) buttons[first].classList.remove("first");
    first = place;
    if (first >= 0) { buttons[first].classList.add("first"); buttons[first].scrollIntoView({ block: "nearest" }); }
    if (first >= 0) find.setAttribute("aria-activedescendant", buttons[first].id);
    else find.removeAttribute("aria-activedescendant");
  }
  function step(by) {
    const shown = buttons.map((b, i) => i).filter((i) => !buttons[i].hidden)
      .sort((a, b) => buttons[a].style.order - buttons[b].style.order || a - b);
    if (shown.length) mark(shown[Math.max(0, Math.min(shown.length - 1, shown.indexOf(first) + by))]);
    if (first >= 0) say(names[first]);
  }

  // The examples of all classes that are not filtered out, or of one.
  function show(some) {
    $("examples-list").replaceChildren(...some.filter((i) => buttons[i].dataset.examples).map((i) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      caption.textContent = names[i];
      figure.append(caption, ...buttons[i].dataset.examples.split(" ").map((number) => {
        const image = document.createElement("img");
        image.loading = "lazy";
        image.alt = "";
        image.src = "/example/" + i + "/" + number + "?run=" + run;
        image.addEventListener("load", () => image.classList.toggle("crisp", Math.max(image.naturalWidth, image.naturalHeight) <= CRISP));
        return image;
      }));
      return figure;
    }));
    if (!examples.open) examples.showModal();
    $("examples-list").scrollTop = 0;
    $("examples-list").focus();
  }
  const visible = () => buttons.map((b, i) => i).filter((i) => !buttons[i].hidden);

  buttons.forEach((b, i) => {
    let held = 0, long = false;
    const release = () => clearTimeout(held);
    b.addEventListener("pointerdown", () => { long = false; release(); held = setTimeout(() => { long = true; show([i]); }, 600); });
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) b.addEventListener(end, release);
    b.addEventListener("contextmenu", (event) => { if (touch) event.preventDefault(); });
    b.addEventListener("click", () => { if (!long) give(b.dataset.label, null, names[i]); long = false; });
  });
  document.querySelectorAll("[data-reason]").forEach((b) =>
    b.addEventListener("click", () => give(null, b.dataset.reason, b.querySelector("span").textContent)));
  $("undo").addEventListener("click", undo);
  if ($("show")) $("show").addEventListener("click", () => show(visible()));
  $("examples-close").addEventListener("click", () => examples.close());
  examples.addEventListener("close", () => { if (find && !touch) find.focus({ preventScroll: true }); });
  document.querySelectorAll("#classes img").forEach((image) => {
    const look = () => image.classList.toggle("crisp", image.naturalWidth > 0 && Math.max(image.naturalWidth, image.naturalHeight) <= CRISP);
    image.addEventListener("load", look);
    look();
  });
  if (find) find.addEventListener("input", filter);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key !== "Backspace" && !event.key.startsWith("Arrow")) return;
    if (examples.open) { if ($("show") && event.key === $("show").dataset.key) { examples.close(); event.preventDefault(); } return; }
    const typing = find && document.activeElement === find;
    if (event.key === "Backspace" && !(typing && find.value)) { if (!event.repeat) undo(); event.preventDefault(); return; }
    if (typing && event.key === "Enter") { if (first >= 0) buttons[first].click(); event.preventDefault(); return; }
    if (typing && event.key === "Escape") { find.value = ""; filter(); return; }
    if (typing && event.key === "ArrowDown") { step(1); event.preventDefault(); return; }
    if (typing && event.key === "ArrowUp") { step(-1); event.preventDefault(); return; }
    const button = keyed.get(event.key) || keyed.get(event.key.toLowerCase());
    if (typing && find.value && !(button && button.id === "show")) return;
    if (button && event.key) { button.click(); event.preventDefault(); return; }
    if (find && !typing && event.key.length === 1 && event.key !== " ") find.focus();
  });
  more();
})();
