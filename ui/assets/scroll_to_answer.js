// Scrolls to the model that was asked for, or to why it was not found.
() => {
  const error = document.querySelector('#hub-results [role=alert]');
  (error ?? document.getElementById('model-details')).scrollIntoView({block: error ? 'center' : 'nearest'});
}
