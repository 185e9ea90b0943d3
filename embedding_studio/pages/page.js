// Brings the parts of a page that change up to date; without this script the page loads itself again.
"use strict";
const shown = new Map(); // what was last sent of each part
const seconds = () => Number(document.documentElement.dataset.refresh);

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { redirect: "error" });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const now = fresh.getElementById(part.id)?.innerHTML;
    // what somebody is using, or has opened, stays as it is until there is something new
    if (now === undefined || part.contains(document.activeElement)) continue;
    if (now !== shown.get(part.id)) part.innerHTML = now;
    shown.set(part.id, now);
  }
  document.documentElement.dataset.refresh = fresh.documentElement.dataset.refresh || 0;
}

async function follow() {
  for (const part of document.querySelectorAll("[data-live]")) shown.set(part.id, part.innerHTML);
  while (seconds()) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds()));
    await refresh().catch(() => undefined); // the API is away for a moment, say
  }
}
follow();
