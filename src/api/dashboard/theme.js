// Before the first paint: the theme that was chosen, so that the page does not flash.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem('tercile-theme');
  } catch {
    // Where nothing may be kept, the system's theme it is.
  }
  const dark = chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
})();
