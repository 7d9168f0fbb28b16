// What the page knows beside the models: its plants and their diseases, the advice of whoever runs it, and pictures to compare with.

import { $, el, json, t, title, words } from "./page.js";

const LONGEST = 300; // plants shown at once: more would be slow on a phone
let classes = []; // { species, diseases }
let told = {}; // rows of advice.csv by "species/disease"
let shown = {}; // pictures by "species/disease"

export const named = (species) => told[`${species}/`];
export const advice = ({ species, disease }) => told[`${species}/${disease}`];
export const pictures = ({ species, disease }) => shown[`${species}/${disease}`] ?? [];
// The species a person means, or null.
export function speciesOf(text) {
  const wanted = words(text).trim().toLowerCase();
  return classes.find(({ species }) => [words(species), ...others(`${species}/`)].includes(wanted))?.species ?? null;
}

// The scientific and the local name, where somebody wrote them down.
const others = (key) => [told[key]?.scientific_name, told[key]?.local_name].filter(Boolean).map((name) => name.toLowerCase());

// Fetch all of it; shell: what there is. -> { url } of a picture to try the page with, or null
export async function loadKnown(shell) {
  const [model, sentences, index] = await Promise.all([json("model"),
    ...["advice.json", "reference/index.json"].map((url) => (shell.includes(url) ? json(url).catch(() => ({})) : {}))]);
  classes = model.classes;
  told = Object.assign({}, ...Object.values(sentences), sentences.en, sentences[t("language")]); // rather in another language than not at all
  shown = index;
  $("plants").replaceChildren(...classes.map(({ species }) => el("option", { value: words(species), label: [words(species), ...others(`${species}/`)].join(", ") })));
  const flat = model.num_classes === model.num_species;
  $("known-summary").textContent = t(flat ? "known_plants" : "known", { plants: model.num_species, conditions: model.num_classes });
  $("search").addEventListener("input", list);
  $("known").hidden = false;
  list();
  const [first] = Object.entries(shown).filter(([, files]) => files.length);
  return first ? { url: `reference/${first[1][0].file}` } : null;
}

// The plants whose own, scientific or local names, or whose diseases, hold what was typed.
function list() {
  const wanted = words($("search").value).trim().toLowerCase();
  const has = (name, key) => [words(name), ...others(key)].some((one) => one.includes(wanted));
  const found = classes.map(({ species, diseases }) => {
    const whole = has(species, `${species}/`);
    return { species, diseases: whole ? diseases : diseases.filter((disease) => has(disease, `${species}/${disease}`)) };
  }).filter(({ diseases }) => diseases.length);
  $("search-count").textContent = !wanted && found.length <= LONGEST ? ""
    : t(found.length > LONGEST ? "found_more" : "found", { count: found.length, shown: LONGEST });
  $("known-list").replaceChildren(...found.slice(0, LONGEST).map(({ species, diseases }) => el("li", { text: title(species) },
    named(species)?.scientific_name && el("i", { class: "soft", text: ` ${named(species).scientific_name}` }),
    diseases.length === 1 && diseases[0] === species ? null : el("small", { text: diseases.map(words).join(", ") }))));
}
