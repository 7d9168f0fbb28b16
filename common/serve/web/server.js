// Asking the server. What goes there is a small copy of the photo, without metadata, or the photo where this browser cannot read it.

import { t } from "./page.js";

export const LIMIT = 30; // s that the server has to answer, besides what a slow connection needs to send the photos
const LONGEST = 10; // s that it waits by itself where the server is busy
const KEYS = { text: "error_picture", format: "error_picture", empty: "error_picture", too_large: "error_large", too_slow: "late", busy: "error_busy",
  truncated: "error_damaged", unreadable: "error_damaged", too_small: "why_small", dark: "why_dark", no_key: "error_key" };
const BY_STATUS = { 401: "error_key", 408: "late", 413: "error_large", 429: "error_busy", 502: "error_away", 503: "error_busy", 504: "error_away" };

// An error as the page shows it: a sentence, and what to do about it.
export function problem(key, values = {}) {
  const all = { seconds: LIMIT, minutes: 1, ...values };
  const todo = key.startsWith("why_") ? key.replace("why_", "do_") : `${key}_do`;
  return Object.assign(new Error(t(key, all)), { advice: t(todo, all) });
}

// Seconds that an answer asks to wait: it gives them, or a date.
function pauseOf(response) {
  const text = response.headers.get("retry-after") ?? "";
  return Number(text) || Math.max(0, (Date.parse(text) - Date.now()) / 1000) || 1;
}

async function pause(seconds, signal) {
  await new Promise((done) => {
    setTimeout(done, 1000 * seconds);
    signal.addEventListener("abort", done);
  });
  signal.throwIfAborted();
}

// photos: [{ blob, shortSide: px of what it is a copy of, or null where it is the photo itself }], of one plant; species: the known one, or null.
export async function ask(photos, species, signal) {
  const query = new URLSearchParams({ heatmap: "1", ...(species && { species }) });
  const sides = photos.map((photo) => photo.shortSide).filter(Boolean);
  if (sides.length) query.set("short_side", String(Math.min(...sides)));
  let [body, headers] = [photos[0].blob, { "content-type": photos[0].blob.type || "application/octet-stream" }];
  if (photos.length > 1) {
    [body, headers] = [new FormData(), {}];
    photos.forEach(({ blob }, i) => body.append("photo", blob, `photo-${i + 1}`));
  }
  for (let attempt = 0; ; attempt += 1) {
    let response;
    try {
      response = await fetch(`predict?${query}`, { method: "POST", body, signal, headers });
    } catch (error) {
      signal.throwIfAborted();
      throw Object.assign(problem(navigator.onLine ? "error_none" : "error_offline"), { unsent: true });
    }
    const answer = await response.json().catch(() => null);
    signal.throwIfAborted();
    if (response.ok && answer?.decision) return answer;
    const key = KEYS[answer?.error?.code] ?? BY_STATUS[response.status];
    const wait = pauseOf(response);
    if (response.status === 503 && wait <= LONGEST && attempt < 3) {
      await pause(wait, signal);
      continue;
    }
    if (key) throw problem(key, { minutes: Math.ceil(wait / 60) });
    throw response.ok ? problem("error_between") : problem("error_other", { status: response.status });
  }
}
