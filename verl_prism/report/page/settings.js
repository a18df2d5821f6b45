function fillSettings(section) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))].sort();
  const differ = keys.filter((key) => new Set(runs.map((run) => run.settings[key])).size > 1);
  if (runs.length > 1) section.append(element("h2", {}, "Settings that differ"), settingsTable(differ));
  section.append(element("h2", {}, "All settings"), settingsTable(keys));
  for (const run of runs) {
    if (run.results) section.append(element("h2", {}, `Results of ${run.name}`), element("pre", {}, run.results));
  }
}

function settingsTable(keys) {
  const header = ["prism.", ...runs.map((run) => run.name)].map((name) => element("th", {}, name));
  const rows = keys.map((key) => {
    const cells = [key, ...runs.map((run) => run.settings[key] ?? "")];
    return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
  });
  return element("div", { class: "scroll" }, element("table", {}, element("tr", {}, ...header), ...rows));
}
