// Shows the answers of the evaluation that the slider chooses, and marks its step in the chart above.
const ownId = element.parentElement.closest('[id]').id;
let [run, step] = ['', Infinity];  // a run's newest, until a person chooses another
window.loratoryPlaces[ownId] = (value) => { if (value !== props.value) props.value = value; };  // else the slider loses the focus

const show = () => {
  const [strip, slider] = [element.querySelector('[data-steps]'), element.querySelector('input')];
  const steps = strip?.dataset.steps.split(' ').map(Number) ?? [];
  if (strip && strip.dataset.run !== run) [run, step] = [strip.dataset.run, Infinity];
  const frame = steps.findLastIndex((one) => one <= step);
  for (const part of element.querySelectorAll('[data-frame]')) part.hidden = part.dataset.frame !== String(frame);
  if (slider) [slider.value, slider.ariaValueText] = [frame, element.querySelector('output :not([hidden])').textContent];
  const chart = document.getElementById(ownId.replace('run-answers', 'loss-chart'))?.querySelector('.chart');
  if (!chart || chart.dataset.mark === String(steps[frame])) return;
  chart.dataset.mark = steps[frame];
  chart.dispatchEvent(new Event('mark'));  // chart.js draws it
};
element.addEventListener('input', ({target}) => {
  step = target.value === target.max ? Infinity : Number(element.querySelector('[data-steps]').dataset.steps.split(' ')[target.value]);
  show();
});
new MutationObserver(show).observe(element, {childList: true, subtree: true});
show();
