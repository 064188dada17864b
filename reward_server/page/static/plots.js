// Plots over the time of a clip, as SVG: lines with a cursor. A click or a drag seeks.

import { h, seconds, svg } from "./dom.js";

const MARGIN = { left: 44, right: 14, top: 8, bottom: 20 };

/**
 * `lines`: [{points: [[timeS, value], ...], name, kind}], `kind` is a class of the stylesheet. `bands`: [fromS, toS] of
 * windows. Returns {element, cursor(timeS)}.
 */
export function timePlot({ title, unit = "", durationS, lines, bands, height = 110, zero = false, onSeek }) {
  const drawing = svg("svg", { class: "plot", role: "img", "aria-label": described(title, lines, unit) });
  const pointer = svg("line", { class: "cursor" });
  const legend = legendOf(lines);
  const element = h("figure", { class: "plot-box" }, h("figcaption", {}, title, legend), drawing);
  const range = rangeOf(lines, zero);
  let x = () => 0;
  let nowS = 0;

  const cursor = (timeS) => {
    nowS = timeS;
    for (const name of ["x1", "x2"]) pointer.setAttribute(name, x(timeS));
  };
  const layOut = () => {
    const width = Math.max(160, drawing.clientWidth || element.clientWidth);
    x = scale([0, durationS], [MARGIN.left, width - MARGIN.right]);
    const y = scale(range, [height - MARGIN.bottom, MARGIN.top]);
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("height", height);
    pointer.setAttribute("y1", MARGIN.top);
    pointer.setAttribute("y2", height - MARGIN.bottom);
    drawing.replaceChildren(...parts({ lines, bands, range, durationS, x, y, width, height, zero }), pointer);
    cursor(nowS);
  };
  const seek = (event) => {
    const box = drawing.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    onSeek(Math.min(1, Math.max(0, share)) * durationS);
  };
  drawing.addEventListener("pointerdown", (event) => {
    drawing.setPointerCapture(event.pointerId);
    seek(event);
  });
  drawing.addEventListener("pointermove", (event) => event.buttons && seek(event));
  new ResizeObserver(layOut).observe(element);
  return { element, cursor };
}

const scale = ([from, to], [start, end]) => (value) => start + ((value - from) / (to - from || 1)) * (end - start);

function rangeOf(lines, zero) {
  const values = lines.flatMap(({ points }) => points.map(([, value]) => value));
  if (zero) values.push(0);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low < 0 ? low - room : Math.max(0, low - room), high + room];
}

/** About `most` round numbers in the range. */
export function ticks([from, to], most) {
  const rough = (to - from) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(from / step);
  const count = Math.floor(to / step) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, at) => Number(((first + at) * step).toPrecision(10)));
}

function parts({ lines, bands, range, durationS, x, y, width, height, zero }) {
  const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
  const shades = bands.map(([fromS, toS]) =>
    svg("rect", { class: "band", x: x(fromS), y: top, width: Math.max(1, x(toS) - x(fromS)), height: bottom - top }),
  );
  const rules = ticks(range, 3).flatMap((value) => [
    svg("line", { class: zero && value === 0 ? "rule zero" : "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
    svg("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value).replace("-", "−")),
  ]);
  const times = ticks([0, durationS], Math.max(2, Math.floor(width / 110))).map((timeS) =>
    svg("text", { x: x(timeS), y: height - 5, "text-anchor": !timeS ? "start" : timeS > 0.95 * durationS ? "end" : "middle" }, `${timeS} s`),
  );
  const drawn = lines.map(({ points, kind }) =>
    svg("polyline", { class: `line ${kind}`, points: points.map(([t, value]) => `${x(t)},${y(value)}`).join(" ") }),
  );
  return [...shades, ...rules, ...times, ...drawn];
}

function legendOf(lines) {
  const named = new Map(lines.map(({ name, kind }) => [name, kind]));
  return h("span", { class: "legend" }, ...[...named].map(([name, kind]) => h("span", { class: kind }, name)));
}

function described(title, lines, unit) {
  const named = [...new Set(lines.map(({ name }) => name))].map((name) => {
    const points = lines.filter((line) => line.name === name).flatMap((line) => line.points);
    const [low, high] = [points.reduce((a, b) => (b[1] < a[1] ? b : a)), points.reduce((a, b) => (b[1] > a[1] ? b : a))];
    const told = ([timeS, value]) => `${value.toFixed(2)}${unit} at ${seconds(timeS)}`;
    return `${name} from ${told(low)} to ${told(high)}`;
  });
  return `${title}: ${named.join("; ")}`;
}
