// Registers a component under its elem_id: a poll puts its answers there.
(window.loratoryPlaces ??= {})[element.parentElement.closest('[id]').id] = (value) => { props.value = value; };
