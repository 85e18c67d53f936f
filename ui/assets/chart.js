// Draws the Plotly figure that the component's value holds, as JSON. Plotly.react keeps zoom and hidden lines across
// updates (layout.uirevision), which the stock plot component does not: it is rebuilt each time.
// Colours such as var(--series-blue) are looked up in the stylesheet, so light and dark need no answer from the server.
const place = element.querySelector('.chart');
const {id} = element.parentElement.closest('[id]');
const tools = element.querySelector('.chart-tools');
const choice = tools.querySelector('select');
const say = (text) => {
  const waiting = document.createElement('p');
  waiting.className = 'small';
  waiting.textContent = text;
  place.replaceChildren(...(text ? [waiting] : []));
};

// A library is read once. The one for lines and bars comes early, while nothing else happens.
let plotly;
const read = (src) => (window.loratoryPlotly ??= {})[src] ??= new Promise((loaded, failed) => {
  document.head.append(Object.assign(document.createElement('script'), {src, onload: () => loaded(window.Plotly), onerror: failed}));
});
const load = async () => { plotly = await read(place.dataset.library); };

const withColours = (text) => {
  const styles = getComputedStyle(document.body);
  return text.replace(/var\((--[a-z-]+)\)/g, (_, name) => styles.getPropertyValue(name).trim() || '#888');
};

// The x axis is chosen in the browser, once for all charts that offer several.
const AXIS = 'loratory-axis';
const axesOf = ({scales, layout}) => {
  const all = Object.keys(scales[0] ?? {[layout.xaxis.title?.text ?? 'step']: []});
  return all.filter((axis) => scales.every((scale) => axis in scale));
};
const duration = (minutes) => minutes < 1 ? `${(minutes * 60).toFixed(0)} s` : minutes < 100 ? `${minutes.toFixed(1)} min` : `${(minutes / 60).toFixed(1)} h`;

// Returns where rising steps are on an axis: between two logged ones, in proportion.
const along = (scale, axis, steps) => {
  if (!scale || axis === 'step') return steps;
  const [known, values] = [scale.step, scale[axis]];
  let right = 0;
  return steps.map((step) => {
    while (right < known.length - 1 && known[right] < step) right += 1;
    const left = Math.max(right - 1, 0);
    const share = right > left ? Math.min((step - known[left]) / (known[right] - known[left]), 1) : 0;
    return values[left] + share * (values[right] - values[left]);
  });
};

const setAxis = (chart) => {
  const axes = axesOf(chart);
  choice.parentElement.hidden = axes.length < 2;
  if (axes.length < 2) return;
  if (choice !== document.activeElement) choice.replaceChildren(...axes.map((axis) => new Option(axis)));
  const axis = choice.value = axes.find((name) => name === localStorage.getItem(AXIS)) ?? 'step';
  chart.layout.uirevision += `:${axis}`;
  Object.assign(chart.layout.xaxis, {title: {text: axis}, unifiedhovertitle: {text: `${axis} %{x:,}`}});
  if (axis !== 'step') delete chart.layout.xaxis.dtick;
  for (const trace of chart.data) {
    const [scale, steps] = [chart.scales[trace.meta], trace.x];
    const [epochs, minutes] = [along(scale, 'epoch', steps), along(scale, 'minutes of training', steps)];
    trace.customdata = steps.map((step, index) => `step ${step.toLocaleString('en')}, epoch ${epochs[index].toFixed(2)}, ${duration(minutes[index])}`);
    trace.x = along(scale, axis, steps);
  }
};

const draw = () => {
  if (!place.isConnected) return;
  const value = props.value;
  tools.hidden = !value;
  if (!value) {
    if (place.data) plotly.purge(place);
    say(place.dataset.waiting);
    place.role = place.ariaLabel = null;
    place.style.height = '';
    place.style.minHeight = '0';
    return;
  }
  if (!plotly) {
    if (place.dataset.waiting) say('Loading the chart …');
    load().then(drawSoon, () => say('The chart cannot be drawn: its library did not load. Reload the page.'));
    return;
  }
  const chart = JSON.parse(withColours(value));
  setAxis(chart);
  place.role = 'img';
  place.ariaLabel = chart.label;
  if (!place.data) place.replaceChildren();
  place.style.minHeight = '';
  place.style.height = chart.layout.height + 'px';
  const [x] = place.dataset.mark >= 0 ? along(chart.scales[0], choice.value || 'step', [Number(place.dataset.mark)]) : [];
  if (x >= 0) chart.layout.shapes = [{type: 'line', x0: x, x1: x, yref: 'paper', y0: 0, y1: 1, line: {color: withColours('var(--soft)'), width: 1.5, dash: 'dot'}}];
  // With a base, Plotly would refer to its shapes by the page's address, which changes.
  const base = document.querySelector('base'), {href} = base;
  base.removeAttribute('href');
  plotly.react(place, chart.data, chart.layout, {displayModeBar: false, responsive: true, doubleClick: 'reset'});
  base.href = href;
};

// Charts of one answer are drawn one by one, a moment after it, those out of sight last: what is clicked meanwhile waits for one.
let due;
const drawSoon = () => {
  due ??= setTimeout(() => {
    const {top, bottom} = place.getBoundingClientRect();
    due = setTimeout(() => { due = undefined; draw(); }, bottom > 0 && top < innerHeight ? 150 : 500);
  });
};

window.addEventListener(AXIS, drawSoon);
choice.onchange = () => { localStorage.setItem(AXIS, choice.value); window.dispatchEvent(new Event(AXIS)); };

// A file is made in the browser, and has the name of the heading above the chart: that of its run.
const fileName = () => {
  const isAbove = (heading) => heading.checkVisibility() && place.compareDocumentPosition(heading) & Node.DOCUMENT_POSITION_PRECEDING;
  const words = `${[...document.querySelectorAll('h2')].filter(isAbove).at(-1)?.textContent} ${id.replace(/^one-/, '')}`;
  return words.replace(/[^\p{L}\p{N}.]+/gu, '-').replace(/^[-.]+/, '');
};

// Spreadsheets execute cells that look like formulas.
const cell = (value) => typeof value === 'string' ? `"${value.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"` : value;
const asCsv = () => {
  const {data, scales, layout} = JSON.parse(props.value);
  const axes = axesOf({scales, layout});
  const lines = data.filter((trace) => trace.hoverinfo !== 'skip').flatMap(({name, x, y, text, meta}) => {
    const columns = [...axes.map((axis) => along(scales[meta], axis, x)), y, text ?? []];
    return x.map((_, index) => [name, ...columns.map((column) => column[index])]);
  });
  return [['series', ...axes, 'value', 'note'], ...lines].map((line) => line.map(cell).join(',') + '\n').join('');
};

tools.addEventListener('click', async ({target: {dataset: {save}}}) => {
  if (!save || !place.data) return;
  const layout = {...place.layout, paper_bgcolor: withColours('var(--paper)')};
  const picture = {format: save, scale: 2, width: place.offsetWidth, height: place.offsetHeight};
  const href = save === 'csv' ? URL.createObjectURL(new Blob([asCsv()], {type: 'text/csv;charset=utf-8'})) : await plotly.toImage({data: place.data, layout}, picture);
  Object.assign(document.createElement('a'), {href, download: `${fileName()}.${save}`}).click();
  setTimeout(() => URL.revokeObjectURL(href), 10000);
});

watch('value', drawSoon);
place.addEventListener('mark', drawSoon);
(window.loratoryPlaces ??= {})[id] = (value) => { props.value = value; draw(); };
const themes = new MutationObserver(draw);
themes.observe(document.body, {attributes: true, attributeFilter: ['class']});
// A chart that was drawn while its tab was hidden has no width yet.
new ResizeObserver(() => { if (place.data && place.offsetWidth) plotly.Plots.resize(place); }).observe(place);
draw();
// Reading a library and the first chart of a page take longest: both come early, each while nothing else happens.
const idle = window.requestIdleCallback ?? setTimeout;  // Safari has none
const warmUp = () => {
  const [trace, axis] = [{x: [0, 1], y: [0, 1], mode: 'lines+markers', name: 'a'}, {title: {text: 'step'}}];
  const layout = {width: 400, height: 300, showlegend: true, hovermode: 'x unified', xaxis: axis, yaxis: axis, annotations: [{x: 0, y: 0, text: 'a'}]};
  window.Plotly.newPlot(document.createElement('div'), [trace, {...trace, mode: 'lines'}], layout, {displayModeBar: false});
};
idle(async () => {
  if (!element.isConnected) return;
  await read(place.dataset.early).catch(() => {});
  if (window.Plotly && !window.loratoryPlotly.isWarm) window.loratoryPlotly.isWarm = idle(warmUp);
});
