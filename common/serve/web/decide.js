// From the light model's numbers to an answer, as common/export/browser/light_model.py, deferral.py and decide.py have it.

import { diseases } from "./heads.js";
import { POOR } from "./page.js";

const FLOOR = 1e-12; // as in common/serve/fusion.py
const BLACK = 0.25; // as in decide.py
const short = (value) => Number(value.toPrecision(6));
const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
const sum = (values) => values.reduce((a, b) => a + b, 0);

// The best species and disease, by as few heads as that takes. headOf(species) gives a head, or null where it cannot be had (offline).
// Where a species is known (not -1), `species` is changed to say so, as common/serve/fusion.condition does.
export async function best(settings, species, feature, headOf, known = -1) {
  const found = { probability: -1, species: 0, disease: 0, heads: new Map(), missing: false };
  const order = known < 0 ? [...species.keys()].sort((a, b) => species[b] - species[a] || a - b) : [known];
  for (const s of order) {
    if (species[s] <= found.probability) break;
    const head = await headOf(s);
    const given = head ? diseases(head, feature) : Array(settings.diseases[s]).fill(1 / settings.diseases[s]);
    let own = given.map((share) => share * species[s]);
    if (known >= 0) {
      own = own.map((share) => Math.max(share, FLOOR));
      const whole = sum(own);
      own = own.map((share) => share / whole);
      species.fill(0);
      species[s] = 1;
    }
    found.heads.set(s, { names: head?.names ?? null, own });
    const top = argmax(own);
    if (own[top] > found.probability) Object.assign(found, { probability: own[top], species: s, disease: top, missing: !head });
  }
  return found;
}

// P(the server is right and this is not), or null where no rule was fitted.
export function ask(settings, species, found, ood) {
  const rule = settings.deferral;
  const gen = settings.scores.indexOf("gen");
  if (!rule || gen < 0) return null;
  const own = [...found.heads.get(found.species).own].sort((a, b) => b - a);
  const sure = Math.min(1 - 1e-6, Math.max(1e-6, found.probability));
  const whole = sum(own);
  const others = Math.max(...species.map((share, s) => (s === found.species ? 0 : share)));
  const signals = [Math.log(sure / (1 - sure)), whole - others, own.length > 1 ? (own[0] - own[1]) / Math.max(whole, 1e-12) : 1, ood[gen]];
  const scaled = signals.map((value, i) => (rule.weights[i] * (value - rule.mean[i])) / rule.spread[i]);
  return 1 / (1 + Math.exp(-(rule.intercept + sum(scaled) + rule.species[found.species])));
}

function judge(plain, settings, ood) {
  if (!plain) return null;
  const weights = Object.entries(plain.weights ?? { [plain.score]: 1 });
  const value = sum(weights.map(([name, weight]) => (weight === 0 ? 0 : weight * ood[settings.scores.indexOf(name)])));
  return { ...plain, value, exceeded: !(value <= plain.threshold) };
}

function quantile({ value, quantiles }) {
  if (!(value < quantiles.at(-1))) return 1;
  const above = quantiles.findIndex((limit) => value < limit);
  if (above === 0) return 0;
  const [low, high] = [quantiles[above - 1], quantiles[above]];
  return (above - 1 + (value - low) / (high - low)) / (quantiles.length - 1);
}

// The answer in the shape of the server's POST /predict. photo: brightness, sharpness and short_side.
export function decide(settings, species, found, ood, photo, topK = 5) {
  const { rejection, rollup } = settings;
  const least = rollup ? rollup.precisions[rollup.default] : { disease: 0, species: 0 };
  const [rejected, plant, disease] = [rejection, rejection?.plant, rejection?.disease].map((score) => judge(score, settings, ood));
  const first = argmax(species);
  const unknown = Boolean(disease?.exceeded) && settings.diseases[first] > 1;
  const certain = found.probability >= least.disease && !unknown && !found.missing;
  let outcome = certain || (species[first] >= least.species && settings.diseases[first] === 1) ? "answered"
    : species[first] >= least.species ? "rolled_up" : "unsure";
  if (rejected?.exceeded) outcome = plant && !plant.exceeded ? "unknown_species" : "not_a_plant";
  if (photo.brightness < BLACK * (rejection?.photo?.brightness ?? 0)) outcome = "unsure";
  // below its threshold the class is given up for the most probable species
  const s = certain ? found.species : first;
  const { names, own } = found.heads.get(s);
  const d = certain ? found.disease : argmax(own);
  const decision = ["answered", "rolled_up"].includes(outcome) ? outcome : "rejected";
  const answered = decision === "answered";
  const [name, condition] = [settings.species[s], names?.[d] ?? null];
  const path = [["species", name, species[s]], ["disease", condition, own[d]]].map(([level, called, share]) =>
    ({ level, name: called, probability: short(share) }));
  return {
    decision, level: { answered: "disease", rolled_up: "species", rejected: "none" }[decision],
    species: decision === "rejected" ? null : name, disease: answered ? condition : null,
    healthy: answered && condition !== name ? condition === "healthy" : null,
    probabilities: {
      species: short(species[s]), disease_given_species: short(species[s] > 0 ? own[d] / species[s] : 0), joint: short(own[d]) },
    path: path.slice(0, { answered: 2, rolled_up: 1, rejected: 0 }[decision]),
    alternatives: alternatives(settings, species, found, topK),
    rejection: reasons(outcome, unknown, { ood: rejected, disease }, rejection?.photo ?? {}, photo, found.missing),
  };
}

// The most probable classes; of a species whose head was not needed only its sum is known, and its disease is null.
function alternatives(settings, species, found, topK) {
  const items = species.flatMap((share, s) => {
    const head = found.heads.get(s);
    if (!head?.names) return [{ species: settings.species[s], disease: null, probability: share }];
    return head.own.map((probability, d) => ({ species: settings.species[s], disease: head.names[d], probability }));
  });
  items.sort((a, b) => b.probability - a.probability);
  return items.slice(0, topK).map((item) => ({ ...item, probability: short(item.probability) }));
}

function reasons(outcome, unknown, scores, limits, photo, missing) {
  let reason = ["answered", "rolled_up"].includes(outcome) ? null : outcome;
  let score = scores.ood;
  if (outcome === "rolled_up" && unknown) [reason, score] = ["unknown_disease", scores.disease];
  else if (outcome === "rolled_up" && missing) reason = "not_here";
  const poor = Object.keys(POOR).filter((name) => name in limits && !(photo[name] >= limits[name]));
  const failed = poor.map((name) => ({ measure: name, value: short(photo[name]), limit: short(limits[name]) }));
  if (failed.length && !["answered", "rolled_up"].includes(outcome)) reason = POOR[failed[0].measure];
  return {
    rejected: !["answered", "rolled_up"].includes(outcome), reason, score: score?.score ?? null,
    value: score && Number.isFinite(score.value) ? short(score.value) : null, threshold: score ? short(score.threshold) : null,
    quantile: score ? short(quantile(score)) : null, photo: failed,
  };
}

// Which parts of the photo the answer rests on: map of (h, w, depth) values -> rows of 0 to 1.
export function heatmap(settings, map, [height, width, depth], head, disease) {
  let heat = Array.from({ length: height * width }, (_, i) => map[i * depth]);
  if (settings.heatmap === "exact") {
    if (!head) return null;
    const weights = head.speciesRow.map((value, k) => value + head.rows[disease][k]);
    heat = heat.map((_, i) => weights.reduce((total, weight, k) => total + weight * map[i * depth + k], 0));
  }
  const low = Math.min(...heat);
  const range = Math.max(Math.max(...heat) - low, 1e-6);
  return Array.from({ length: height }, (_, y) => heat.slice(y * width, (y + 1) * width).map((value) => (value - low) / range));
}
