// Entry point: shows one segmentation from the API's responses and redraws when other models are in service.

import { follow, get } from './api.js';
import * as tryIt from './try_it.js';
import * as transitions from './transitions.js';
import * as quality from './quality.js';
import * as candidates from './candidates.js';
import * as drift from './drift.js';
import * as live from './live.js';
import { byId, el, pretty } from './page.js';
import * as members from './members.js';
import * as receipt from './receipt.js';
import * as segments from './segments.js';
import * as unreadable from './unreadable.js';
import { about, apply, language, setLanguage, t } from './i18n.js';

/** The segmentation shown: {info, models, points, probe}. */
let shown = null;
let wished = decodeURIComponent(location.hash.slice(1));
let loading = 0;

/** Cache of sample points by version, which is immutable. */
const samples = new Map();

async function sample(name, model) {
  const of = `${name}@${model.version}`;
  if (!samples.has(of)) {
    const points = await get(`/api/segments/${encodeURIComponent(name)}/points?model=${model.slice}`);
    samples.set(of, points);
    if (samples.size > 60) samples.delete(samples.keys().next().value);
    // Other models may be in service by now; the response names its own version.
    if (points.version !== model.version) samples.delete(of);
    return points;
  }
  return samples.get(of);
}

/** Loads and shows the selected segmentation. The latest selection wins. */
async function load() {
  const infos = live.status()?.segmentations ?? [];
  const info = infos.find((one) => one.name === wished) ?? infos[0];
  const turn = ++loading;
  choices(infos, info);
  if (!info) return nothing(t('no_segmentations'), t('no_segmentations_more'));
  if (info.slices.every((slice) => slice.refused && slice.version === undefined)) return nothing(t('no_model_possible'), info.slices.map((slice) => slice.refused).join('; '));
  if (info.slices.every((slice) => slice.version === undefined)) return nothing(t('no_models'), t(live.status().records === 0 ? 'no_models_empty' : 'no_models_more'));
  let [models, points] = [];
  try {
    models = await get(`/api/segments/${encodeURIComponent(info.name)}/models`);
    points = await Promise.all(models.map((model) => sample(info.name, model)));
  } catch (error) {
    if (turn === loading && shown?.info.name !== info.name) nothing(t('not_loaded'), error.message);
    return undefined;
  }
  if (turn !== loading) return undefined;
  shown = { info, models, points: new Map(models.map((model, i) => [model.slice, points[i]])), probe: tryIt.probe(info.name) };
  return draw();
}

function draw() {
  for (const id of ['changed', 'try', 'good']) byId(id).hidden = !shown;
  // Texts speak of records, or of members and their keys.
  about((shown?.models.at(-1)?.entity ?? []).map(pretty));
  members.show(shown);
  if (!shown) return;
  segments.show(shown);
  changes();
  tryIt.show(shown);
  quality.show(shown);
  candidates.show(shown);
  drift.show(shown);
  receipt.show(shown);
}

function changes() {
  const logarithmic = segments.isLogarithmic(shown);
  transitions.show(shown, segments.shownAxes().map((name, i) => ({ name, logarithmic: logarithmic[i] })));
}

function nothing(title, text) {
  shown = null;
  draw();
  segments.none(title, text);
}

function choices(infos, info) {
  const press = (name) => () => {
    wished = name;
    history.replaceState(null, '', `#${encodeURIComponent(name)}`);
    load();
  };
  const focused = document.activeElement?.dataset?.name;
  byId('choices').replaceChildren(...infos.map((one) => el('button', { type: 'button', 'data-name': one.name, 'aria-pressed': String(one.name === info?.name), onclick: press(one.name) }, pretty(one.name))));
  // Of many, the chosen one may be out of sight.
  const chosen = byId('choices').querySelector('[aria-pressed="true"]');
  if (chosen) {
    const [outer, inner] = [byId('choices').getBoundingClientRect(), chosen.getBoundingClientRect()];
    if (inner.left < outer.left || inner.right > outer.right) byId('choices').scrollLeft += inner.left - outer.left - 24;
  }
  if (focused) [...byId('choices').children].find((one) => one.dataset.name === focused)?.focus();
}

function switches() {
  for (const button of document.querySelectorAll('[data-language]')) {
    button.addEventListener('click', () => {
      setLanguage(button.dataset.language);
      said();
      tryIt.again();
    });
  }
  byId('theme').addEventListener('click', () => {
    const dark = document.documentElement.dataset.theme !== 'dark';
    document.documentElement.dataset.theme = dark ? 'dark' : 'light';
    try {
      localStorage.setItem('tercile-theme', dark ? 'dark' : 'light');
    } catch {
      // Kept until the page is closed.
    }
    themed();
    draw();
  });
  byId('axes').addEventListener('change', () => changes());
  byId('axes').addEventListener('click', () => changes());
}

function themed() {
  byId('theme').setAttribute('aria-pressed', String(document.documentElement.dataset.theme === 'dark'));
}

/** Updates all texts to the current language. */
function said() {
  apply();
  for (const button of document.querySelectorAll('[data-language]')) {
    button.setAttribute('aria-pressed', String(button.dataset.language === language()));
  }
  live.show();
  unreadable.show();
  if (shown) draw();
  else if (live.status()) load();
}

function start() {
  switches();
  themed();
  said();
  tryIt.start((row) => {
    shown.probe = row;
    segments.show(shown);
  });
  // Keeps relative times current.
  setInterval(live.show, 20_000);
  follow('/api/events', (status) => {
    if (live.hear(status)) load();
    unreadable.hear(status);
  }, live.lose);
}

start();
