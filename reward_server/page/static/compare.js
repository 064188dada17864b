// The view of two clips: both pictures in step, the differences of their rewards, and which windows differ.

import { controls } from "./controls.js";
import { pairCurves } from "./curves.js";
import { h, seconds, signed } from "./dom.js";
import { REWARDS } from "./meaning.js";
import { overlay } from "./overlay.js";
import { Pair } from "./pair.js";
import { picture } from "./picture.js";
import { Player } from "./player.js";
import { refusal, shown } from "./score.js";
import { stateOf } from "./table.js";
import { Timeline } from "./timeline.js";
import { margin } from "./welch.js";

/** Returns {element, update(clip), close}. */
export function compareView(a, b, clips) {
  const body = h("div", {});
  const element = h("article", { class: "compare" }, h("h2", { tabindex: -1 }, `${a.name} and ${b.name}`), body);
  let open = null;
  const show = async () => {
    const pending = [a, b].filter((clip) => clip.phase !== "ok");
    if (pending.length) return void body.replaceChildren(...pending.map(waitingFor));
    try {
      const results = await Promise.all([clips.result(a), clips.result(b)]);
      if (open || !element.isConnected) return;
      open = compared([a, b], results);
      body.replaceChildren(open.element);
    } catch (error) {
      body.replaceChildren(refusal(error.code ?? "", error.message));
    }
  };
  queueMicrotask(show);
  return {
    element,
    update: (clip) => (clip === a || clip === b) && !open && show(),
    close: () => open?.close(),
  };
}

function waitingFor(clip) {
  if (clip.phase === "error") return refusal(clip.error.code, `${clip.name}: ${clip.error.message}`);
  return h("p", {}, `${clip.name}: ${stateOf(clip)} `, !clip.ended && h("progress", { "aria-label": `Progress of ${clip.name}` }));
}

function compared(both, results) {
  const explained = results.every(({ reward }) => reward.explanation);
  const players = both.map((clip, at) => {
    const { explanation } = results[at].reward;
    return new Player(results[at].provenance.source, explanation ? overlay(new Timeline(explanation), shown) : () => {}, `${clip.name} with its tracks`);
  });
  const pair = new Pair(...players);
  const keys = controls(pair, shown, () => players.forEach((player) => player.redraw()));
  const durationS = Math.max(...results.map(({ provenance }) => provenance.source.duration_s));
  const curves = explained && pairCurves(...results, durationS, (timeS) => (pair.pause(), pair.seek(timeS)));
  pair.addEventListener("time", () => curves && curves.cursor(pair.timeS));
  const stages = both.map((clip, at) =>
    h("figure", {}, h("figcaption", { class: at ? "b" : "a" }, h("b", {}, "AB"[at]), ` ${clip.name}`), players[at].element, picture(players[at], clip)),
  );
  const element = h(
    "div",
    {},
    h("div", { class: "stages" }, ...stages),
    keys.element,
    h("div", { class: "more" }, differences(results), windows(results)),
    curves && h("div", { class: "over-time" }, curves.element),
  );
  return {
    element,
    close: () => {
      keys.close();
      players.forEach((player) => player.close());
    },
  };
}

function table(title, head, rows, note) {
  const heads = head.map((name, at) => h("th", { scope: "col", class: at && "number" }, name));
  return h("section", {}, h("h3", {}, title), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, h("table", {}, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows))), h("p", { class: "quiet" }, note));
}

function differences(results) {
  const [a, b] = results.map(({ reward }) => reward);
  const rows = REWARDS.map(({ name, title }) => {
    const difference = b[name] - a[name];
    const values = [signed(a[name]), signed(b[name]), signed(difference), ...certainty([a, b], name, difference)];
    return h("tr", { "data-reward": name }, h("th", { scope: "row" }, title), ...values.map((value) => h("td", { class: "number" }, value)));
  });
  const note = "Not different: Welch's t test at 95 %, over the windows; a clip of one window has no error. motion-reward compare takes more draws.";
  return table("Rewards", ["", "A", "B", "B − A", "error", ""], rows, note);
}

/** The error of the difference, and which clip is higher. A clip without an error leaves both open. */
function certainty(both, name, difference) {
  const known = both.map((reward) => reward.standard_error);
  if (!known.every(Boolean)) return ["–", ""];
  const errors = known.map((error) => error[name]);
  const samples = known.map((error) => (error.num_windows > 1 ? error.num_windows : error.num_draws));
  const verdict = Math.abs(difference) > margin(errors, samples) ? `${difference > 0 ? "B" : "A"} is higher` : "not different";
  return [Math.hypot(...errors).toFixed(2), verdict];
}

/** Windows of the clip that has more, each beside the window of the other that begins nearest. */
function windows(results) {
  const [a, b] = results.map(({ reward }) => reward.windows);
  const nearest = (one, among) => among.reduce((best, other) => (Math.abs(other.start_s - one.start_s) < Math.abs(best.start_s - one.start_s) ? other : best));
  const pairs = a.length >= b.length ? a.map((one) => [one, nearest(one, b)]) : b.map((one) => [nearest(one, a), one]);
  const gap = (head) => pairs.map(([one, other]) => other.logits[head] - one.logits[head]);
  const gaps = { instantaneous: gap("instantaneous"), long_term: gap("long_term") };
  const most = Object.fromEntries(Object.entries(gaps).map(([head, values]) => [head, Math.max(...values.map(Math.abs))]));
  const rows = pairs.map(([one, other], at) => {
    const cells = Object.entries(gaps).flatMap(([head, values]) => {
      const marked = pairs.length > 1 && most[head] > 0 && Math.abs(values[at]) === most[head];
      return [signed(one.logits[head]), signed(other.logits[head]), [signed(values[at]), marked]];
    });
    const drawn = cells.map((cell) => (Array.isArray(cell) ? h("td", { class: "number" }, cell[1] ? h("mark", {}, cell[0]) : cell[0]) : h("td", { class: "number" }, cell)));
    const starts = Math.abs(one.start_s - other.start_s) < 0.005 ? seconds(one.start_s) : `${seconds(one.start_s)} / ${seconds(other.start_s)}`;
    return h("tr", {}, h("th", { scope: "row" }, starts), ...drawn);
  });
  const head = ["Start", "Inst. A", "B", "B − A", "Long A", "B", "B − A"];
  return table("Windows", head, rows, "Marked: the window that differs most.");
}
