// The cards of rewards: any change sends all of them.
const VALUE = {boolean: (box) => box.checked, number: (box) => box.value === '' ? null : Number(box.value), text: (box) => box.value, list: (box) => box.value.split('\n').filter((line) => line.trim())};
const cards = () => [...element.querySelectorAll('[data-scorer]')].map((card) => ({
  scorer: card.dataset.scorer,
  ...Object.fromEntries([...card.querySelectorAll('[data-field]')].map((box) => [box.dataset.field, VALUE[box.dataset.type](box)]).filter(([, value]) => value !== null)),
}));
const sendCards = (all) => pick(JSON.stringify(all));
element.addEventListener('change', ({target}) => {
  if (target.matches('.add')) { if (target.value) sendCards([...cards(), {scorer: target.value}]); target.value = ''; } else sendCards(cards());
});
element.addEventListener('click', ({target}) => {
  if (!target.matches('.remove')) return;
  const number = [...element.querySelectorAll('.remove')].indexOf(target);
  sendCards(cards().toSpliced(number, 1));
});
