"use strict";

const COLORS = ["#2563c9", "#d9730d", "#1a7f37", "#a33ea1", "#b42318", "#0b8a8a", "#8a6d00", "#666"];
const WIDTH = 420, HEIGHT = 220;
const LEFT = 46, RIGHT = 8, TOP = 10, BOTTOM = 24;
const PAGE_SIZE = 25;
const ALWAYS_SHOWN = { rate: [0, 1], "from 0": [0], "": [] };  // values of an axis, by its range

const { runs } = await load();
const tip = document.getElementById("tip");
fillCharts(document.getElementById("charts"));
fillSamples(document.getElementById("samples"));
fillSettings(document.getElementById("settings"));
openTab(location.hash.slice(1) || "charts");
for (const button of document.querySelectorAll("nav button")) {
  button.onclick = () => openTab(button.dataset.tab);
}

async function load() {
  const text = atob(document.getElementById("data").textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function openTab(name) {
  for (const button of document.querySelectorAll("nav button")) {
    button.setAttribute("aria-current", button.dataset.tab === name);
    document.getElementById(button.dataset.tab).hidden = button.dataset.tab !== name;
  }
  history.replaceState(null, "", "#" + name);
}

// An element with attributes, and children that are elements or text. Text is never read as HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function shape(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function display(value) {
  if (value === null || value === undefined) return "none";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Math.abs(value) < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}
