// The owner's buttons. The page is loaded anew now and then, unless somebody is typing or a new link has not been copied.
"use strict";
(() => {
  const say = document.getElementById("say"), name = document.getElementById("name");
  async function act(action, worker) {
    const response = await fetch("/owner/act", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ action, worker }) });
    const body = await response.json();
    if (!response.ok) { say.textContent = body.error; return; }
    if (body.path) { say.textContent = worker + ": " + location.origin + body.path; name.value = ""; } else location.reload();
  }
  document.querySelectorAll("[data-action]").forEach((b) => b.addEventListener("click", () => act(b.dataset.action, b.dataset.worker)));
  document.getElementById("invite").addEventListener("click", () => act("invite", name.value.trim()));
  name.addEventListener("keydown", (event) => { if (event.key === "Enter") act("invite", name.value.trim()); });
  setInterval(() => { if (!name.value && !say.textContent && document.visibilityState === "visible") location.reload(); }, 20000);
})();
