// The three slices of a segmentation side by side, and descriptions of its clusters.

import { heavyTailed } from './axis.js';
import { badge, bar, byId, count, described, el, empty, number, percent, pretty, sliceName } from './page.js';
import { Plane, imputedOf } from './plot.js';
import { isLogScaled } from './scaling.js';
import { language, t } from './i18n.js';

/** The user's selection: features, scales, highlighted cluster. */
const chosen = { name: null, axes: [], logarithmic: new Map(), highlighted: null };
let planes = [];
let transform = d3.zoomIdentity;

/** Shows a segmentation: {info, models, points, probe}. */
export function show(shown) {
  if (chosen.name !== shown.info.name || chosen.axes.some((feature) => !shown.info.features.includes(feature))) {
    Object.assign(chosen, { name: shown.info.name, axes: shown.info.features.slice(0, 2), logarithmic: new Map(), highlighted: null });
    transform = d3.zoomIdentity;
  }
  byId('segments-lead').textContent = t(shown.info.features.length > 1 ? 'segments_lead' : 'segments_lead_one');
  tools(shown);
  draw(shown);
  clusters(shown);
}

/** Values of a feature in all slices: the plots share axes, so that changes are visible. */
function axesOf(shown) {
  return chosen.axes.map((name) => {
    const values = [...shown.points.values()].flatMap((points) => {
      const at = points.features.indexOf(name);
      return points.points.map((point) => point.values[at]);
    });
    const logarithmic = chosen.logarithmic.get(name) ?? (shown.models.some((model) => isLogScaled(model, name)) || heavyTailed(values));
    return { name, values, logarithmic };
  });
}

export const shownAxes = () => chosen.axes;

export const isLogarithmic = (shown) => axesOf(shown).map((axis) => axis.logarithmic);

function draw(shown) {
  const box = byId('planes');
  const axes = axesOf(shown);
  if (box.dataset.of !== shown.info.name || planes.length === 0) {
    box.dataset.of = shown.info.name;
    planes = shown.info.slices.map(({ slice }) => card(slice));
    box.replaceChildren(...planes.map((plane) => plane.card));
  }
  for (const plane of planes) {
    const model = shown.models.find((model) => model.slice === plane.slice);
    const points = shown.points.get(plane.slice);
    plane.title.textContent = sliceName(plane.slice);
    if (!model || !points) {
      const slice = shown.info.slices[plane.slice - 1];
      plane.rows.textContent = '';
      plane.missing.replaceChildren();
      plane.names.replaceChildren();
      plane.drawn = null;
      plane.stage.replaceChildren(el('p', { class: 'none' }, slice?.fault ?? slice?.refused ?? t('no_model')));
      continue;
    }
    plane.rows.textContent = t('rows_version', { n: count(model.rows), version: model.version });
    plane.missing.replaceChildren(...imputedOf(model).map(({ feature, rows }) => {
      const said = t('imputed', { feature: pretty(feature), n: count(rows), all: count(model.rows) });
      return chosen.axes.includes(feature) ? el('p', {}, el('i', { 'aria-hidden': 'true' }), `${said} (${t('hollow')})`) : el('p', {}, said);
    }));
    plane.drawn ??= new Plane(plane.stage, zoomed, plane.names);
    plane.drawn.set({ model, points, axes, highlighted: chosen.highlighted, probe: shown.probe });
  }
}

function card(slice) {
  const [title, rows] = [el('h3'), el('span', { class: 'rows' })];
  const stage = el('div', { class: 'stage' });
  const names = el('div', { class: 'names' });
  // Legend of the hollow points.
  const missing = el('div', { class: 'missing' });
  return { slice, title, rows, stage, names, missing, drawn: null, card: el('figure', { class: 'card plane', 'data-slice': slice }, el('figcaption', {}, title, rows), stage, names, missing) };
}

function zoomed(to) {
  transform = to;
  for (const plane of planes) plane.drawn?.setTransform(to);
}

function tools(shown) {
  const again = () => show(shown);
  const { features } = shown.info;
  const box = byId('axes');
  const logarithmic = isLogarithmic(shown);
  const focused = document.activeElement?.id;
  const pick = (i) => {
    const options = features.map((feature) => el('option', { value: feature, selected: chosen.axes[i] === feature }, pretty(feature)));
    const change = (event) => {
      // The same feature on both axes would be a line: the axes are swapped.
      const other = chosen.axes[1 - i];
      if (event.target.value === other) chosen.axes[1 - i] = chosen.axes[i];
      chosen.axes[i] = event.target.value;
      zoomed(d3.zoomIdentity);
      again();
    };
    return el('label', {}, t(i === 0 ? 'across' : 'up'), el('select', { id: `axis-${i}`, onchange: change }, options));
  };
  const toggle = (feature, i) => {
    const flip = () => {
      chosen.logarithmic.set(feature, !logarithmic[i]);
      zoomed(d3.zoomIdentity);
      again();
    };
    return el('button', { type: 'button', id: `log-${i}`, 'aria-pressed': String(logarithmic[i]), onclick: flip }, t('log_of', { feature: pretty(feature) }));
  };
  const zoom = (label, factor) => {
    const press = () => {
      const stage = planes.find((plane) => plane.drawn)?.drawn;
      stage?.key(new KeyboardEvent('keydown', { key: factor }), zoomed);
    };
    return el('button', { type: 'button', 'aria-label': t(`zoom_${label}`), title: t(`zoom_${label}`), onclick: press }, { in: '+', out: '−', all: '⤢' }[label]);
  };
  const parts = [];
  if (features.length > 2) parts.push(pick(0), pick(1));
  parts.push(...chosen.axes.map(toggle));
  if (features.length > 1) parts.push(zoom('in', '+'), zoom('out', '-'), zoom('all', '0'));
  box.replaceChildren(...parts);
  if (focused) byId(focused)?.focus();
}

/** Clusters of the whole stream, or of the largest slice with a model. */
function clusters(shown) {
  const model = shown.models.at(-1);
  const box = byId('clusters');
  if (!model) {
    box.replaceChildren();
    byId('clusters-key').textContent = '';
    byId('clusters-tiny').textContent = '';
    byId('words-changed').hidden = true;
    return;
  }
  const focused = document.activeElement?.id;
  box.replaceChildren(...model.clusters.map((cluster) => {
    const share = cluster.size / Math.max(1, model.rows);
    const typical = model.features.map((feature) => el('span', {}, `${pretty(feature)} ${spread(cluster, feature)}`));
    const press = () => {
      chosen.highlighted = chosen.highlighted === cluster.cluster ? null : cluster.cluster;
      show(shown);
    };
    return el(
      'button',
      { type: 'button', id: `cluster-${cluster.cluster}`, class: `card cluster c${cluster.cluster % 8}`, 'aria-pressed': String(chosen.highlighted === cluster.cluster), onclick: press },
      badge(cluster.cluster),
      el('span', { class: 'what' }, described(cluster)),
      el('span', { class: 'share' }, `${count(cluster.size)} · ${percent(share)} · ${sliceName(model.slice)}`, cluster.new && el('strong', { class: 'new' }, ` · ${t('new_segment')}`)),
      el('span', { class: 'centre' }, typical.flatMap((one, i) => (i > 0 ? [' ', one] : [one]))),
      bar(share),
    );
  }));
  byId('clusters-key').textContent = model.clusters.some((cluster) => cluster.typical) ? t('typical_key') : '';
  tinyClusters(model);
  changedWords(shown.models);
  if (focused) byId(focused)?.focus();
}

/** The quartiles of a feature and its mean. */
const spread = (cluster, feature) => {
  const mean = number(cluster.centroid[feature]);
  const three = quartiles(cluster, feature);
  return three ? `${three} (${t('mean', { mean })})` : mean;
};

/** The three quartiles of a feature; absent in models of earlier versions. */
const quartiles = (cluster, feature) => cluster.typical?.[feature]?.map((value) => number(value)).join(' – ');

/** Clusters with hardly any rows, which decide the others. */
function tinyClusters(model) {
  const { tiny } = model;
  const names = (tiny?.clusters ?? []).map((cluster) => `${cluster}, ${described(model.clusters[cluster])}`).join('; ');
  const without = tiny?.preferred ? t('tiny_prefers', { k: tiny.preferred }) : t('tiny_try');
  byId('clusters-tiny').textContent = tiny ? `${t('tiny', { names, n: count(tiny.rows), all: count(model.rows) })} ${without}` : '';
}

/** Descriptions that the latest trainings changed. */
function changedWords(models) {
  const one = (model) => (model.words_changed ?? []).map((change) => {
    const { from, to } = change.languages[language()] ?? change;
    const quoted = (word) => (word ? `“${word}”` : t('no_word'));
    const of = change.feature ? pretty(change.feature) : t('description');
    const name = described(model.clusters[change.cluster]);
    const text = t('word_changed', { slice: sliceName(model.slice), name, of, from: quoted(from), to: quoted(to) });
    return from === to ? null : el('li', {}, badge(change.cluster), text);
  });
  const items = models.flatMap(one).filter(Boolean);
  const box = byId('words-changed');
  box.hidden = items.length === 0;
  box.replaceChildren(el('h3', {}, t('words_changed')), el('ul', {}, items));
}

/** Shows a reason in place of a segmentation. */
export function none(title, text) {
  planes = [];
  byId('planes').dataset.of = '';
  byId('axes').replaceChildren();
  byId('segments-lead').textContent = '';
  byId('clusters').replaceChildren();
  byId('clusters-key').textContent = '';
  byId('clusters-tiny').textContent = '';
  byId('words-changed').hidden = true;
  const box = empty(title, text);
  box.style.gridColumn = '1 / -1';
  byId('planes').replaceChildren(box);
}
