// /docs: the examples with this server's address, and a button that asks each address.

const base = new URL("./", document.querySelector("link[rel=icon]").href).href.replace(/\/$/, "");
for (const example of document.querySelectorAll("pre")) example.textContent = example.textContent.replaceAll("URL", base);

for (const button of document.querySelectorAll("[data-try]")) {
  button.addEventListener("click", async () => {
    const shown = button.nextElementSibling;
    const key = document.getElementById("key").value;
    const photo = document.getElementById("try-photo").files[0];
    const predicts = button.dataset.try.endsWith("/predict");
    shown.hidden = false;
    if (predicts && !photo) {
      shown.textContent = "Choose a photo first.";
      return;
    }
    shown.textContent = "...";
    const query = predicts ? `?${document.getElementById("try-options").value.replace(/^\?/, "")}` : "";
    try {
      const response = await fetch(`${base}/${button.dataset.try}${query}`, { headers: key ? { authorization: `Bearer ${key}` } : {},
        ...(predicts && { method: "POST", body: photo }) });
      const text = await response.text();
      let told = text;
      try {
        told = JSON.stringify(JSON.parse(text), null, 2);
      } catch { /* metrics and this page are no JSON */ }
      shown.textContent = `${response.status} ${response.statusText}\n${told}`;
    } catch (error) {
      shown.textContent = String(error);
    }
  });
}
