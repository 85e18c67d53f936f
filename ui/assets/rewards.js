// The cards of rewards: any change sends all of them.
const sendCards = (all) => pick(JSON.stringify(all));
element.addEventListener('change', ({target}) => {
  if (target.matches('.add')) { if (target.value) sendCards([...cards(), {scorer: target.value}]); target.value = ''; } else sendCards(cards());
});
element.addEventListener('click', ({target}) => {
  if (!target.matches('.remove')) return;
  const number = [...element.querySelectorAll('.remove')].indexOf(target);
  sendCards(cards().toSpliced(number, 1));
});
