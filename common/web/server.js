// Asking the server. What goes there is a small copy of the photo, without metadata, or the photo where this browser cannot read it.

export class ServerError extends Error {}

// photos: [{ blob, shortSide: px of the photo it is a copy of, or null where it is the photo itself }], of one plant.
export async function ask(photos, signal) {
  const query = new URLSearchParams({ heatmap: "1" });
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
      response = await fetch(`/predict?${query}`, { method: "POST", body, signal, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw Object.assign(new ServerError("The server cannot be reached."), { away: true,
        advice: "See whether it is still running and you are still connected, then choose the photo again." });
    }
    if (response.status === 503 && attempt < 3) {
      await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("retry-after")) || 1)));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    throw Object.assign(new ServerError(answer.error?.message ?? `The server answered ${response.status}.`), {
      away: response.status >= 500,
      advice: response.status === 503 ? "Wait a moment, then choose the photo again."
        : response.status >= 500 ? "Try again. If it stays so, tell whoever runs this server."
        : "Choose another photo: JPEG, PNG and WebP work." });
  }
}
