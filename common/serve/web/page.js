// What all of the page uses: elements, and the sentences of texts.json, from which Python's answers come too.

export const POOR = { short_side: "small", brightness: "dark", sharpness: "blurred" }; // measures of a photo, and what is wrong where one is too low
export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter(Boolean));
  return node;
}

export function button(text, click, kind = "", id = "") {
  const node = el("button", { type: "button", class: `button ${kind}`, text, ...(id && { id }) });
  node.addEventListener("click", click);
  return node;
}

export async function json(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.json();
}

let texts = {};

export async function loadTexts() {
  texts = await json("texts.json");
}

// A sentence with its {placeholders} filled; {host} is where the page comes from.
export const t = (key, values = {}) => (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? location[name]);

export const words = (name) => name.replaceAll("_", " ");
export const title = (name) => words(name).charAt(0).toUpperCase() + words(name).slice(1);

// Whether the server may be reached: on this very computer it is, without a network too.
export const online = () => navigator.onLine || ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);

// A share of 1 that promises no more than is known: never 100 %, never 0 %.
export function percent(value) {
  if (value >= 0.99) return t("over");
  return value < 0.01 ? t("under") : `${Math.round(100 * value)} %`;
}
