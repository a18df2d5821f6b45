function fillCharts(section) {
  section.append(runTable());
  const stages = [...new Set(runs.map((run) => run.stage))];
  for (const stage of stages) {
    const members = runs.filter((run) => run.stage === stage);
    const panels = element("div", { class: "panels" });
    for (const title of chartTitles(members)) panels.append(panel(members, title));
    section.append(element("h2", {}, `Stage ${stage}`));
    section.append(panels.children.length ? panels : element("p", {}, "There is no metric yet."));
    section.append(allMetrics(members));
  }
}

function runTable() {
  const rows = runs.map((run) => {
    const summary = Object.entries(run.state.summary).map(([name, value]) => `${name} ${value}`);
    const thinned = run.left_out ? `${run.left_out} steps are not drawn, evenly spaced` : "";
    const cells = [run.name, run.stage, run.state.text, [...summary, thinned].filter(Boolean).join(" · ")];
    return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
  });
  const header = ["run", "stage", "state", "summary"].map((name) => element("th", {}, name));
  const table = element("table", {}, element("tr", {}, ...header), ...rows);
  return element("div", { class: "scroll" }, table);
}

function chartTitles(members) {
  return [...new Set(members.flatMap((run) => run.charts.map((chart) => chart.title)))];
}

function panel(members, title) {
  const found = members.map((run) => run.charts.find((chart) => chart.title === title));
  const chart = found.find(Boolean);
  if (chart.stacked) {
    const parts = members.filter((run, i) => found[i]).map((run) => stackedPanel(run, chart.title));
    return parts.length === 1 ? parts[0] : element("div", { class: "panel" }, ...parts);
  }
  const labels = [...new Set(found.filter(Boolean).flatMap((each) => Object.keys(each.lines)))];
  const lines = [];
  members.forEach((run, runNumber) => {
    if (!found[runNumber]) return;
    for (const [label, metric] of Object.entries(found[runNumber].lines)) {
      const alone = members.length === 1;
      lines.push({
        name: alone ? label : `${run.name}: ${label}`,
        color: COLORS[(alone ? labels.indexOf(label) : runNumber) % COLORS.length],
        dashes: alone ? "" : ["", "6 3", "2 3", "8 3 2 3"][labels.indexOf(label) % 4],
        steps: run.steps,
        values: run.series[metric],
      });
    }
  });
  return linePanel(chart.title, lines, chart.range, chart.note);
}

function linePanel(title, lines, range, note) {
  const all = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const [low, high] = extent([...ALWAYS_SHOWN[range], ...all]);
  const scale = scales(lines.map((line) => line.steps), low, high);
  const svg = axes(scale);
  for (const line of lines) {
    const path = shape("path", { d: lineCommands(line, scale), fill: "none", stroke: line.color, "stroke-width": 1.5 });
    if (line.dashes) path.setAttribute("stroke-dasharray", line.dashes);
    svg.append(path);
  }
  hover(svg, lines, scale);
  return element("div", { class: "panel" }, element("h3", {}, title), legend(lines), svg, element("p", { class: "quiet" }, note));
}

// A loop: `Math.min(...values)` fails for long lists.
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// Ticks are at round numbers, and the lowest and the highest one are the ends of the axis.
function scales(stepLists, low, high) {
  const [first, last] = extent(stepLists.flat());
  const distance = tickDistance(high - low || Math.abs(high) || 1);
  const bottom = Math.floor(low / distance + 1e-9) * distance;
  const top = Math.max(Math.ceil(high / distance - 1e-9) * distance, bottom + distance);
  return {
    first, last, bottom, top, distance,
    x: (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT),
    y: (value) => HEIGHT - BOTTOM - ((value - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM),
  };
}

function tickDistance(range) {
  const power = 10 ** Math.floor(Math.log10(range / 4));
  const factor = [1, 2, 2.5, 5, 10].find((each) => each * power * 5 >= range);
  return factor * power;
}

function axes(scale) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const ticks = Math.round((scale.top - scale.bottom) / scale.distance);
  for (let i = 0; i <= ticks; i++) {
    const value = scale.bottom + i * scale.distance;
    const y = scale.y(value);
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
    svg.append(shape("text", { x: LEFT - 5, y: y + 4, "text-anchor": "end" }, tickText(value)));
  }
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 6 }, `step ${scale.first}`));
  svg.append(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, String(scale.last)));
  return svg;
}

function tickText(value) {
  const rounded = Number(value.toPrecision(6));
  const small = Math.abs(rounded) < 1e-3 || Math.abs(rounded) >= 1e6;
  return rounded && small ? rounded.toExponential(1) : String(rounded);
}

// A missing value interrupts the line, unless most are missing, as if it is measured now and then.
function lineCommands(line, scale) {
  const known = line.values.filter((value) => value !== null).length;
  const interrupted = 2 * known > line.values.length;
  let commands = "", drawing = false;
  line.steps.forEach((step, i) => {
    const value = line.values[i];
    if (value === null) {
      if (interrupted) drawing = false;
      return;
    }
    const point = `${scale.x(step).toFixed(1)} ${scale.y(value).toFixed(1)}`;
    commands += drawing ? `L${point}` : `M${point}h0.01`;
    drawing = true;
  });
  return commands;
}

function legend(lines) {
  const items = lines.map((line) =>
    element("span", { style: `--color: ${line.color}`, class: line.dashes ? "dashed" : "" }, line.name));
  return element("div", { class: "legend" }, ...items);
}

function hover(svg, lines, scale) {
  const cursor = shape("line", { class: "grid", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const wanted = scale.first + ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (scale.last - scale.first);
    const steps = lines[0].steps;
    let step = steps[0];
    for (const each of steps) if (Math.abs(each - wanted) < Math.abs(step - wanted)) step = each;
    const texts = [`step ${step}`];
    for (const line of lines) {
      const i = line.steps.indexOf(step);
      if (i >= 0) texts.push(`${line.name}  ${display(line.values[i])}`);
    }
    cursor.setAttribute("x1", scale.x(step));
    cursor.setAttribute("x2", scale.x(step));
    cursor.setAttribute("visibility", "visible");
    tip.textContent = texts.join("\n");
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
  };
  svg.onpointerleave = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
}

function stackedPanel(run, title) {
  const chart = run.charts.find((each) => each.title === title);
  const total = run.steps.map(() => 0);
  const lines = Object.entries(chart.lines).map(([name, metric], number) => {
    const values = run.series[metric];
    const bottom = [...total];
    values.forEach((value, i) => { total[i] += value ?? 0; });
    return { name, values, bottom, top: [...total], steps: run.steps, color: COLORS[number % COLORS.length] };
  });
  const scale = scales([run.steps], 0, extent(total)[1]);
  const svg = axes(scale);
  for (const line of lines) {
    const up = run.steps.map((step, i) => `${scale.x(step).toFixed(1)},${scale.y(line.top[i]).toFixed(1)}`);
    const down = run.steps.map((step, i) => `${scale.x(step).toFixed(1)},${scale.y(line.bottom[i]).toFixed(1)}`);
    svg.append(shape("polygon", { points: [...up, ...down.reverse()].join(" "), fill: line.color, "fill-opacity": 0.75 }));
  }
  hover(svg, lines, scale);
  const name = runs.length > 1 ? `${title} (${run.name})` : title;
  return element("div", { class: "panel" }, element("h3", {}, name), legend(lines), svg);
}

function allMetrics(members) {
  const panels = element("div", { class: "panels" });
  const names = [...new Set(members.flatMap((run) => Object.keys(run.series)))].sort();
  const search = element("input", { type: "search", placeholder: "part of a name", "aria-label": "metrics" });
  search.oninput = () => {
    for (const each of panels.children) each.hidden = !each.dataset.name.includes(search.value);
  };
  const details = element("details", {}, element("summary", {}, `All ${names.length} metrics`), search, panels);
  details.ontoggle = () => {
    if (panels.children.length) return;
    for (const name of names) {
      const having = members.filter((run) => run.series[name]);
      const lines = having.map((run, i) => (
        { name: run.name, color: COLORS[i % COLORS.length], dashes: "", steps: run.steps, values: run.series[name] }));
      const made = linePanel(name, lines, "", "");
      made.dataset.name = name;
      panels.append(made);
    }
  };
  return details;
}
