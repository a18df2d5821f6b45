function fillSamples(section) {
  const all = runs.flatMap((run) => run.samples.map((sample) => ({ ...sample, run })));
  for (const run of runs) {
    if (run.note) section.append(element("p", { class: "quiet" }, `${run.name}: ${run.note}`));
  }
  if (!all.length) {
    section.append(element("p", {}, "There is no sample."));
    return;
  }
  const numeric = new Set(), named = new Map();
  for (const { marks } of all) {
    for (const [name, value] of Object.entries(marks)) {
      if (typeof value === "number") numeric.add(name);
      else if (value) named.set(name, (named.get(name) ?? new Set()).add(value));
    }
  }
  const controls = {
    run: choice("run", runs.map((run) => run.name)),
    format: choice("format", ["valid", "invalid"]),
    sort: choice("sort by", ["step", ...numeric]),
    order: choice("", ["rising", "falling"], false),
    from: input("number", "first step"),
    text: input("search", "text"),
  };
  for (const [name, values] of named) controls[`mark ${name}`] = choice(name, [...values].map(String).sort());
  const count = element("span", { class: "quiet" });
  const list = element("div");
  const more = element("button", {}, "more");
  const filters = element("div", { class: "filters" });
  for (const control of Object.values(controls)) filters.append(control.shown);
  filters.append(count);
  section.append(filters, list, more);

  let chosen = [], shown = 0;
  const showMore = () => {
    for (const sample of chosen.slice(shown, shown + PAGE_SIZE)) list.append(sampleView(sample));
    shown += PAGE_SIZE;
    more.hidden = shown >= chosen.length;
  };
  const update = () => {
    chosen = all.filter((sample) => matches(sample, controls, named));
    const key = valueOf(controls.sort);
    if (key) chosen = sorted(chosen, key, valueOf(controls.order) === "falling");
    count.textContent = `${chosen.length.toLocaleString()} of ${all.length.toLocaleString()} samples`;
    list.replaceChildren();
    shown = 0;
    showMore();
  };
  for (const control of Object.values(controls)) control.field.oninput = update;
  more.onclick = showMore;
  update();
}

function choice(name, values, optional = true) {
  const options = values.map((value) => element("option", { value }, value));
  if (optional) options.unshift(element("option", { value: "" }, "all"));
  if (name === "sort by") options[0].textContent = "as written";
  const select = element("select", { "aria-label": name || "order" }, ...options);
  return { field: select, shown: element("label", {}, name ? `${name} ` : "", select) };
}

function input(type, name) {
  const field = element("input", { type, placeholder: name, "aria-label": name });
  return { field, shown: field };
}

function valueOf(control) {
  return control.field.value;
}

function matches(sample, controls, named) {
  const run = valueOf(controls.run), format = valueOf(controls.format);
  if (run && sample.run.name !== run) return false;
  if (format && (format === "valid") !== Boolean(sample.blocks)) return false;
  if (valueOf(controls.from) && !(sample.step >= Number(valueOf(controls.from)))) return false;
  for (const name of named.keys()) {
    const wanted = valueOf(controls[`mark ${name}`]);
    if (wanted && String(sample.marks[name]) !== wanted) return false;
  }
  const text = valueOf(controls.text).toLowerCase();
  if (!text) return true;
  const question = sample.run.questions[sample.row];
  return JSON.stringify([sample.blocks, sample.text, question?.text]).toLowerCase().includes(text);
}

function sorted(samples, key, falling) {
  const value = (sample) => (key === "step" ? sample.step : sample.marks[key]) ?? -Infinity;
  return [...samples].sort((a, b) => (falling ? value(b) - value(a) : value(a) - value(b)));
}

function sampleView(sample) {
  const question = sample.run.questions[sample.row];
  const asked = element("div");
  for (const image of question?.images ?? []) {
    asked.append(element("img", { src: `data:image/jpeg;base64,${image}`, alt: "image of the question" }));
  }
  asked.append(element("p", {}, question?.text ?? `row ${sample.row}`));
  if (question?.gold != null) asked.append(element("p", { class: "answer" }, `gold: ${question.gold}`));
  const writer = sample.run.stage === "sft" ? "demonstration" : "policy";
  const policy = element("div", {}, element("h4", {}, writer), ...texts(sample));
  const teacher = element("div", {}, element("h4", {}, question?.teacher ? "teacher" : ""));
  if (question?.teacher) teacher.append(...texts(question.teacher));
  const marks = element("div", { class: "marks" });
  const known = { run: runs.length > 1 ? sample.run.name : null, step: sample.step, row: sample.row, ...sample.marks };
  for (const [name, value] of Object.entries(known)) {
    if (value !== null && value !== "") marks.append(element("span", {}, `${name} `, element("b", {}, display(value))));
  }
  return element("article", { class: "sample" }, asked, policy, teacher, marks);
}

function texts(response) {
  if (!response.blocks) return [element("p", { class: "fault" }, `${response.fault}\n\n${response.text}`)];
  return Object.entries(response.blocks).map(([name, text]) => element("p", { class: name, title: name }, text));
}
