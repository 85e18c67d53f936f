// The button sends the choices for all names; one that is "?" is not mapped. A space would divide settings.
element.addEventListener('click', ({target}) => {
  if (!target.closest('button')) return;
  const boxes = [...element.querySelectorAll('select')].filter((box) => box.value !== '?');
  const roles = JSON.stringify(Object.fromEntries(boxes.map((box) => [box.dataset.name, box.value])));
  pick(`dataset.role_map=${roles.replaceAll(' ', '\\u0020')}`);
});
