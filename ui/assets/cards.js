// Cards of scorers: what their boxes hold.
const VALUE = {boolean: (box) => box.checked, number: (box) => box.value === '' ? null : Number(box.value), text: (box) => box.value, list: (box) => box.value.split('\n').filter((line) => line.trim())};
const cards = () => [...element.querySelectorAll('[data-scorer]')].map((card) => ({
  scorer: card.dataset.scorer,
  ...Object.fromEntries([...card.querySelectorAll('[data-field]')].map((box) => [box.dataset.field, VALUE[box.dataset.type](box)]).filter(([, value]) => value !== null)),
}));
