// Draws the Plotly figure that the component's value holds, as JSON. Plotly.react keeps zoom and hidden lines across
// updates (layout.uirevision), which the stock plot component does not: it is rebuilt each time.
// Colours such as var(--series-blue) are looked up in the stylesheet, so light and dark need no answer from the server.
const place = element.querySelector('.chart');
const say = (text) => {
  const waiting = document.createElement('p');
  waiting.className = 'small';
  waiting.textContent = text;
  place.replaceChildren(...(text ? [waiting] : []));
};

// The library comes with the first figure: until there is one, no chart waits for it.
const load = () => window.loratoryPlotly ??= new Promise((loaded, failed) => {
  document.head.append(Object.assign(document.createElement('script'), {src: place.dataset.library, onload: loaded, onerror: failed}));
});

const withColours = (text) => {
  const styles = getComputedStyle(document.body);
  return text.replace(/var\((--[a-z-]+)\)/g, (_, name) => styles.getPropertyValue(name).trim() || '#888');
};

const draw = () => {
  if (!place.isConnected) return;
  const value = props.value;
  if (!value) {
    if (window.Plotly && place.data) window.Plotly.purge(place);
    say(place.dataset.waiting);
    place.role = place.ariaLabel = null;
    place.style.height = '';
    place.style.minHeight = '0';
    return;
  }
  if (!window.Plotly) {
    if (place.dataset.waiting) say('Loading the chart …');
    load().then(draw, () => say('The chart cannot be drawn: its library did not load. Reload the page.'));
    return;
  }
  const chart = JSON.parse(withColours(value));
  place.role = 'img';
  place.ariaLabel = chart.label;
  if (!place.data) place.replaceChildren();
  place.style.minHeight = '';
  place.style.height = chart.layout.height + 'px';
  window.Plotly.react(place, chart.data, chart.layout, {displayModeBar: false, responsive: true, doubleClick: 'reset'});
};

watch('value', draw);
(window.loratoryPlaces ??= {})[element.parentElement.closest('[id]').id] = (value) => { props.value = value; draw(); };
const themes = new MutationObserver(draw);
themes.observe(document.body, {attributes: true, attributeFilter: ['class']});
// A chart that was drawn while its tab was hidden has no width yet.
new ResizeObserver(() => { if (window.Plotly && place.data && place.offsetWidth) window.Plotly.Plots.resize(place); }).observe(place);
draw();
