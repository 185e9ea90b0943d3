// Brings the parts of a page that change up to date; without this script the page loads itself again.
"use strict";
const seconds = () => Number(document.documentElement.dataset.refresh);

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { redirect: "error" });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const now = fresh.getElementById(part.id);
    // what somebody is using stays as it is
    if (now && now.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
      part.innerHTML = now.innerHTML;
    }
  }
  document.documentElement.dataset.refresh = fresh.documentElement.dataset.refresh || 0;
}

async function follow() {
  while (seconds()) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds()));
    await refresh().catch(() => undefined); // the API is away for a moment, say
  }
}
follow();
