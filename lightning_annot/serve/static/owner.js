// The owner's page: buttons, tables that sort, and parts that renew themselves without moving the page under the reader.
"use strict";
(() => {
  const RENEW_MS = 5000;
  const $ = (id) => document.getElementById(id);
  const had = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.id, part.innerHTML]));
  const orders = new Map(); // place of a table -> how it was sorted

  function sort(table) {
    const order = orders.get([...document.querySelectorAll("table[data-sortable]")].indexOf(table));
    if (!order) return;
    const value = (row) => {
      const cell = row.cells[order.column], text = cell.dataset.value ?? cell.textContent.trim();
      const number = parseFloat(text.replace(/,/g, ""));
      return Number.isNaN(number) ? text.toLowerCase() : number;
    };
    const less = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1);
    const rows = [...table.tBodies[0].rows].sort((a, b) => order.sign * less(value(a), value(b)));
    table.tBodies[0].append(...rows);
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (column === order.column) head.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  }

  async function act(action, worker) {
    const body = { action, worker };
    if (action === "pause" && $("reason").value.trim()) body.reason = $("reason").value.trim();
    let response, told;
    try {
      response = await fetch("/owner/act", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      told = await response.json();
    } catch { $("say").textContent = "The server does not answer."; return; }
    if (!response.ok) { $("say").textContent = typeof told.error === "string" ? told.error : "This did not work."; return; }
    $("say").textContent = "";
    if (told.path) {
      $("link-name").textContent = worker;
      $("link-text").value = location.origin + told.path;
      $("link").hidden = false;
      $("link-text").select();
      $("name").value = "";
    }
    renew();
  }

  // Replace what has changed; focus, sorting and the place on the page stay.
  let renewing = false; // one at a time: of a large run it takes a while
  async function renew() {
    if (renewing) return;
    renewing = true;
    try { await renewParts(); } finally { renewing = false; }
  }
  async function renewParts() {
    let text;
    try {
      const response = await fetch("/owner");
      if (response.status === 401) { $("say").textContent = "This link is no longer valid: the page was started anew and has printed another."; return; }
      if (!response.ok) return;
      text = await response.text();
    } catch { return; /* the server is away; the next time may do */ }
    const fresh = new DOMParser().parseFromString(text, "text/html");
    document.querySelectorAll("[data-live]").forEach((part) => {
      const other = fresh.getElementById(part.id);
      if (!other || had.get(part.id) === other.innerHTML) return;
      had.set(part.id, other.innerHTML);
      const focus = part.contains(document.activeElement) ? document.activeElement : null;
      part.replaceChildren(...other.childNodes);
      part.querySelectorAll("table[data-sortable]").forEach(sort);
      if (focus) again(part, focus);
    });
  }
  function again(part, focus) {
    const same = [...part.querySelectorAll("button, a")].find((one) => (focus.dataset.action
      ? one.dataset.worker === focus.dataset.worker && (one.dataset.action === "close") === (focus.dataset.action === "close")
      : one.textContent === focus.textContent));
    if (same) same.focus({ preventScroll: true });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.action) { act(button.dataset.action, button.dataset.worker); return; }
    const head = button.closest("th"), table = button.closest("table[data-sortable]");
    if (!head || !table) return;
    const place = [...document.querySelectorAll("table[data-sortable]")].indexOf(table);
    orders.set(place, { column: head.cellIndex, sign: head.getAttribute("aria-sort") === "descending" ? 1 : -1 });
    sort(table);
  });
  if (!$("invite")) return; // a page with tables alone
  $("invite").addEventListener("click", () => act("invite", $("name").value.trim()));
  $("name").addEventListener("keydown", (event) => { if (event.key === "Enter") act("invite", $("name").value.trim()); });
  $("copy").addEventListener("click", async () => {
    $("link-text").select();
    try { await navigator.clipboard.writeText($("link-text").value); $("say").textContent = "Copied."; }
    catch { $("say").textContent = "Press Ctrl+C to copy."; }
  });
  $("link-done").addEventListener("click", () => { $("link").hidden = true; $("link-text").value = ""; $("name").focus(); });
  setInterval(() => { if (document.visibilityState === "visible") renew(); }, RENEW_MS);
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") renew(); });
})();
