// Asking the server. What goes there is a small copy of the photo, without metadata, or the photo where this browser cannot read it.

export class ServerError extends Error {}

function advice(status) {
  if (status === 503) return "Wait a moment, then choose the photo again.";
  if (status >= 500) return "Try again. If it stays so, tell whoever runs this server.";
  return status === 401 ? "Ask whoever runs this server." : "Choose another photo: JPEG, PNG and WebP work.";
}

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
      response = await fetch(`predict?${query}`, { method: "POST", body, signal, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw Object.assign(new ServerError("The server cannot be reached."), {
        advice: "See whether it is still running and you are still connected, then choose the photo again." });
    }
    if (response.status === 503 && attempt < 3) {
      await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("retry-after")) || 1)));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    const message = response.status === 401 ? "The server only answers programs that have its key." : answer.error?.message;
    throw Object.assign(new ServerError(message ?? `The server answered ${response.status}.`), { advice: advice(response.status) });
  }
}
