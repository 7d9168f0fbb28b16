// What the page knows beside the models: its plants and their diseases, the advice of whoever runs it, and pictures to compare with.

import { $, el, json, t, title, words } from "./page.js";

const LONGEST = 300; // plants shown at once: more would be slow on a phone
let classes = []; // { species, diseases }
let told = {}; // rows of advice.csv by "species/disease"
let shown = {}; // pictures by "species/disease"

// The row of a disease, or of a plant; where plants are all that is told apart, it may stand there as either.
export const advice = (species, disease = species) => (disease === species && told[`${species}/`]) || told[`${species}/${disease}`];
export const pictures = ({ species, disease }) => shown[`${species}/${disease}`] ?? [];

// What a plant or its disease is called: the local name where there is one in the page's language, else that of the class.
export const called = (species, disease = species) => advice(species, disease)?.leads || (disease === "healthy" ? t("healthy") : words(disease));

// Of a class; where the disease is not known, or is the species itself, of the species.
export const className = ({ species, disease }) => (!disease || species === disease ? title(called(species))
  : t("class", { species: title(called(species)), disease: called(species, disease) }));

// The species a person means, or null.
export function speciesOf(text) {
  const wanted = words(text).trim().toLowerCase();
  const found = classes.find(({ species }) => words(species).toLowerCase() === wanted) ?? classes.find(({ species }) => allNames(species).includes(wanted));
  return found?.species ?? null;
}

// The scientific name, and what else it is called, as a node; or null.
export function otherNames(species, disease = species) {
  const row = advice(species, disease);
  const other = row?.leads ? words(disease) : row?.local_name;
  const names = [row?.scientific_name && el("i", { text: row.scientific_name }), other && el("span", { text: other })].filter(Boolean);
  return names.length ? el("span", { class: "names soft" }, ...names) : null;
}

// All that a plant or a disease may be called, in small letters.
function allNames(species, disease = species) {
  const row = advice(species, disease);
  const names = [called(species, disease), words(disease), row?.scientific_name, row?.local_name];
  return [...new Set(names.filter(Boolean).map((name) => name.toLowerCase()))];
}

// Fetch all of it; shell: what there is. -> { url } of a picture to try the page with, or null
export async function loadKnown(shell) {
  const [model, sentences, index] = await Promise.all([json("model"),
    ...["advice.json", "reference/index.json"].map((url) => (shell.includes(url) ? json(url).catch(() => ({})) : {}))]);
  const own = sentences[t("language")] ?? {};
  for (const row of Object.values(own)) row.leads = row.local_name;
  told = Object.assign({}, ...Object.values(sentences), sentences.en, own); // rather in another language than not at all
  classes = model.classes.sort((a, b) => called(a.species).localeCompare(called(b.species)));
  shown = index;
  const value = (species) => (speciesOf(called(species)) === species ? called(species) : words(species)); // two may be called the same
  $("plants").replaceChildren(...classes.map(({ species }) => el("option", { value: value(species), label: allNames(species).join(", ") })));
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
  const has = (...of) => allNames(...of).some((name) => name.includes(wanted));
  const found = classes.map(({ species, diseases }) =>
    ({ species, diseases: has(species) ? diseases : diseases.filter((disease) => has(species, disease)) })).filter(({ diseases }) => diseases.length);
  $("search-count").textContent = !wanted && found.length <= LONGEST ? ""
    : t(found.length > LONGEST ? "found_more" : "found", { count: found.length, shown: LONGEST });
  $("known-list").replaceChildren(...found.slice(0, LONGEST).map(({ species, diseases }) => el("li", { text: title(called(species)) },
    otherNames(species),
    diseases.length === 1 && diseases[0] === species ? null : el("small", { text: diseases.map((disease) => called(species, disease)).join(", ") }))));
}
