// The plots of one or two explained clips: the residual over time, and the logits of each window.

import { h } from "./dom.js";
import { timePlot } from "./plots.js";

const HEADS = [["instantaneous", "instantaneous"], ["long_term", "long-term"]];

/** A point per pair of frames, in the middle of the pair. One line per window. */
function curve(explanation, name, kind, label) {
  return explanation.windows.map((window) => ({
    kind,
    name: label,
    points: window[name].map((value, at) => [(window.times_s[at] + window.times_s[at + 1]) / 2, value]),
  }));
}

/** The logit of a head, as a level over each window's time. */
function levels({ reward }, head, kind, label) {
  return reward.windows.map((window, at) => {
    const times = reward.explanation.windows[at].times_s;
    return { kind, name: label, points: [[times[0], window.logits[head]], [times.at(-1), window.logits[head]]] };
  });
}

const bandsOf = ({ reward }) => reward.explanation.windows.map(({ times_s }) => [times_s[0], times_s.at(-1)]);

/** Plots of one clip. */
export function ownCurves(result, durationS, onSeek) {
  const { explanation } = result.reward;
  const shared = { durationS, bands: bandsOf(result), onSeek };
  return grouped([
    timePlot({ ...shared, title: "Residual", unit: " gray levels", lines: curve(explanation, "residual_curve", "residual", "mean residual, gray levels") }),
    timePlot({ ...shared, title: "Flow", lines: curve(explanation, "flow_confidence_curve", "confidence", "mean confidence of the flow") }),
    timePlot({
      ...shared,
      title: "Windows",
      zero: true,
      lines: HEADS.flatMap(([head, label]) => levels(result, head, head, `${label} logit`)),
    }),
  ]);
}

/** Plots of two clips, A and B, on one time. */
export function pairCurves(a, b, durationS, onSeek) {
  const shared = { durationS, bands: bandsOf(a), onSeek };
  const both = (make) => [...make(a, "a", "A"), ...make(b, "b", "B")];
  return grouped([
    timePlot({
      ...shared,
      title: "Residual, gray levels",
      lines: both((one, kind, label) => curve(one.reward.explanation, "residual_curve", kind, label)),
    }),
    ...HEADS.map(([head, title]) =>
      timePlot({
        ...shared,
        title: `Windows, ${title} logit`,
        zero: true,
        lines: both((one, kind, label) => levels(one, head, kind, label)),
      }),
    ),
  ]);
}

function grouped(plots) {
  return {
    element: h("div", { class: "plots" }, ...plots.map(({ element }) => element)),
    cursor: (timeS) => plots.forEach((plot) => plot.cursor(timeS)),
  };
}
