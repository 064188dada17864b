// Says what the rewards mean, in words and on a scale.

import { h, signed } from "./dom.js";

export const REWARDS = [
  {
    name: "combined",
    title: "Combined",
    says: "The weighted mean of the two below. Use it to choose between clips of one prompt.",
  },
  {
    name: "instantaneous",
    title: "Instantaneous",
    says: "Judges what the optical flow does not explain between neighbouring frames: flicker, tearing, jumps.",
  },
  {
    name: "long_term",
    title: "Long-term",
    says: "Judges the paths of points through a window: freezing, drifting, jitter, points that come and go.",
  },
];

const HIGH_LOW = [
  [5, "below nearly all real clips"],
  [25, "in the lowest quarter of real clips"],
  [75, "among the middle half of real clips"],
  [101, "in the highest quarter of real clips"],
];

export const percentileOf = (reward, name) => reward.standing?.[`${name}_percentile`] ?? null;

/** Cards of the three rewards. */
export function rewardCards(reward) {
  return h("div", { class: "cards" }, ...REWARDS.map((one) => card(reward, one)));
}

function card(reward, { name, title, says }) {
  const error = reward.standard_error?.[name];
  return h(
    "article",
    { class: `card ${name}`, "data-reward": name },
    h("h3", {}, title),
    h("p", { class: "value" }, signed(reward[name]), error !== undefined && h("small", {}, ` ± ${error.toFixed(2)}`)),
    h("p", { class: "quiet" }, says),
    scale(reward, name),
  );
}

/** Where a reward lies: among real clips if there is a percentile, otherwise within its bounds. */
function scale(reward, name) {
  const percentile = percentileOf(reward, name);
  if (percentile === null) {
    const { min, max } = reward.bounds;
    const share = (100 * (reward[name] - min)) / (max - min);
    return h("div", {}, bar(share, [[0, min], [50, (min + max) / 2], [100, max]]), h("p", { class: "quiet" }, "on the scale of all possible rewards"));
  }
  const place = HIGH_LOW.find(([below]) => percentile < below)[1];
  return h(
    "div",
    {},
    bar(percentile, [[0, "0"], [25, "25"], [50, "50"], [75, "75"], [100, "100"]], true),
    h("p", {}, h("strong", {}, `Percentile ${percentile.toFixed(0)}`), `, ${place}`),
  );
}

function bar(share, marks, quarters = false) {
  const place = (element, at) => {
    element.style.left = `${at}%`;
    return element;
  };
  return h(
    "div",
    { class: quarters ? "scale quarters" : "scale", "aria-hidden": "true" },
    place(h("span", { class: "pin" }), share),
    ...marks.map(([at, text]) => place(h("span", { class: "mark" }, String(text).replace("-", "−")), at)),
  );
}

/** Sentences on the whole result: the nearest rung, why a percentile is missing, clipping, and warnings. */
export function remarks(reward, provenance) {
  const { standing } = reward;
  const told = [];
  if (standing?.nearest) {
    told.push([`Its logits are nearest to those of ${standing.nearest}.`, " A comparison, not a diagnosis."]);
  }
  if (standing?.num_clips) told.push([`Percentiles are among ${standing.num_clips} real clips of this length (${standing.band}).`]);
  if (standing?.missing) told.push([`No percentile: ${standing.missing}`]);
  if (!reward.standard_error) told.push(["One window: there is no standard error."]);
  return h(
    "div",
    { class: "remarks" },
    reward.clipped && h("p", { class: "flag" }, `Clipped: a logit is outside ${reward.bounds.min} to ${reward.bounds.max}.`),
    ...told.map(([text, more]) => h("p", {}, text, more && h("span", { class: "quiet" }, more))),
    ...provenance.warnings.map(({ message }) => h("p", { class: "flag" }, message)),
    reward.explanation?.reduced && h("p", { class: "flag" }, reward.explanation.reduced),
  );
}
