// The controls of a player, or of a pair of players: play, step, seek, speed, and what is drawn. Keys do the same.

import { h, seconds } from "./dom.js";

const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
const KEYS = "Space play · ← → frame · Shift+← → ten · Home End · T tracks · H heatmap";

/** `shown` has the switches {tracks, heat}; `redraw` is called when one changes. Returns {element, close}. */
export function controls(player, shown, redraw) {
  const play = h("button", { type: "button", class: "play", onclick: () => toggle() }, "Play");
  const step = (frames, name, sign) =>
    h("button", { type: "button", "aria-label": name, title: name, onclick: () => player.step(frames) }, sign);
  const slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "Frame", class: "seek" });
  slider.addEventListener("input", () => (player.pause(), player.seekFrame(Number(slider.value))));
  const time = h("output", { class: "time" });
  const speed = h(
    "select",
    { "aria-label": "Speed", onchange: () => (player.rate = Number(speed.value)) },
    ...SPEEDS.map((rate) => h("option", { value: rate }, `${rate}×`)),
  );
  speed.value = String(player.rate);
  const switches = { tracks: switchOf("tracks", "Tracks"), heat: switchOf("heat", "Heatmap") };

  function switchOf(name, label) {
    const box = h("input", { type: "checkbox", checked: shown[name] });
    box.addEventListener("change", () => ((shown[name] = box.checked), redraw()));
    return h("label", { class: "switch" }, box, label);
  }
  function toggle() {
    if (player.playing) player.pause();
    else player.play();
  }
  function show() {
    slider.max = player.numFrames - 1;
    slider.value = player.frame;
    const text = `${seconds(player.timeS)}, frame ${player.frame + 1} of ${player.numFrames}`;
    slider.setAttribute("aria-valuetext", text);
    time.textContent = text;
    play.textContent = player.playing ? "Pause" : "Play";
  }
  const flip = (name) => switches[name].querySelector("input").click();
  const actions = {
    " ": toggle,
    ArrowLeft: (event) => player.step(event.shiftKey ? -10 : -1),
    ArrowRight: (event) => player.step(event.shiftKey ? 10 : 1),
    Home: () => (player.pause(), player.seekFrame(0)),
    End: () => (player.pause(), player.seekFrame(player.numFrames - 1)),
    t: () => flip("tracks"),
    h: () => flip("heat"),
  };
  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    if (event.key === " " && event.target.closest("button, a, summary, input")) return;
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action(event);
  }

  document.addEventListener("keydown", onKey);
  for (const event of ["time", "state"]) player.addEventListener(event, show);
  show();
  const element = h(
    "div",
    { class: "controls", role: "group", "aria-label": "Playback" },
    h("div", { class: "row" }, play, step(-1, "Previous frame", "◂"), step(1, "Next frame", "▸"), slider),
    h("div", { class: "row" }, time, h("span", { class: "spring" }), switches.tracks, switches.heat, speed),
    h("p", { class: "quiet keys" }, KEYS),
  );
  return { element, close: () => document.removeEventListener("keydown", onKey) };
}
