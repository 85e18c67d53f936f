// The front end of Gradio 6.31 watches each entry of the page's description for changes, which never come, and looks at the
// targets of all events for each component. In lists of another kind than Array it watches nothing; and an event that follows
// another one is started by that one, never by a target.
if (window.gradio_config) {
  class Unwatched extends Array {}
  for (const event of gradio_config.dependencies) event.targets = event.targets.filter(([id]) => id !== null);
  for (const list of [gradio_config.components, gradio_config.dependencies]) Object.setPrototypeOf(list, Unwatched.prototype);
}
