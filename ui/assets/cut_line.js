// The line where rows are cut: what it cuts follows it here, between the edges of the bins; the server counts once it is released.
let wait = 0;
const count = (number, noun) => `${Math.round(number).toLocaleString('en')} ${noun}${Math.round(number) === 1 ? '' : 's'}`;
element.addEventListener('input', ({target}) => {
  clearTimeout(wait);
  target.value = Math.max(8, target.value);
  const cuts = JSON.parse(target.dataset.cuts); // each of an edge, and of the rows and the trained tokens that it cuts
  const first = Math.min(Number(target.value) + 1, cuts.at(-1)[0]); // the shortest length that is cut
  const next = cuts.findIndex(([edge]) => edge >= first);
  const [before, after] = [cuts[next - 1], cuts[next]];
  const part = (first - before[0]) / (after[0] - before[0]);
  const [, rows, tokens] = before.map((value, index) => value + part * (after[index] - value));
  const text = `About ${count(rows, target.dataset.noun)} and ${count(tokens, 'trained token')} cut at ${count(target.value, 'token')}.`;
  target.ariaValueText = target.nextElementSibling.textContent = text;
  target.parentElement.querySelectorAll('rect').forEach((bar, bin) => bar.setAttribute('class', cuts[bin][0] >= target.value ? 'cut' : 'kept'));
});
// A key that is held down is one release.
element.addEventListener('change', ({target}) => { wait = setTimeout(() => pick(`training.max_length=${target.value}`), 500); });
// A slider that was moved keeps its own value, unless it is told the server's.
const settleLine = () => { for (const line of element.querySelectorAll('input')) line.value = line.defaultValue; };
new MutationObserver(settleLine).observe(element, {subtree: true, attributeFilter: ['value']});
