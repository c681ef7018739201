// Plot of one slice: a scatter plot of two features, or a histogram of one. Points are drawn on a canvas for speed; axes,
// centroids and names are SVG. Records with an imputed value on an axis are drawn hollow.

import { axisName, drawAxes, scaleOf } from './axis.js';
import { badge, count, described, el, hideTip, labels, number, percent, pretty, svg, tip } from './page.js';
import { isLogScaled, scaledBy } from './scaling.js';
import { t } from './i18n.js';

const BARS = 48;
/** Maximum distance of the pointer from a point, in pixels. */
const NEAR = 14;
/** Size of the background squares, in pixels. */
const GROUND = 4;

/** Cluster colour from the style sheet. */
const colour = (cluster) => getComputedStyle(document.documentElement).getPropertyValue(`--cluster-${cluster % 8}`).trim();

export class Plane {
  /** `zoomed` is called when the user zooms or pans. `legend` takes the names that have no room in the plot. */
  constructor(stage, zoomed, legend) {
    this.stage = stage;
    this.legend = legend;
    this.back = svg('svg', { 'aria-hidden': 'true' });
    this.canvas = document.createElement('canvas');
    this.front = svg('svg', { role: 'img', tabindex: 0 });
    this.ground = svg('g');
    stage.replaceChildren(this.back, this.canvas, this.front);
    this.back.append(this.ground);
    this.transform = d3.zoomIdentity;
    this.zoom = d3.zoom().scaleExtent([1, 60]).filter((event) => this.allowed(event)).on('zoom', ({ transform, sourceEvent }) => {
      if (sourceEvent) zoomed(transform);
    });
    d3.select(this.front).call(this.zoom);
    this.front.addEventListener('pointermove', (event) => this.hover(event));
    this.front.addEventListener('pointerleave', () => this.leave());
    this.front.addEventListener('keydown', (event) => this.key(event, zoomed));
    new ResizeObserver(() => this.draw()).observe(stage);
  }

  /** Wheel and one finger scroll the page; the plot takes Ctrl and wheel, two fingers, and dragging when zoomed. */
  allowed(event) {
    if (this.one) return false;
    if (event.type === 'wheel') return event.ctrlKey || event.metaKey;
    if (event.touches) return event.touches.length > 1 || this.transform.k > 1;
    return !event.button;
  }

  key(event, zoomed) {
    const { k } = this.transform;
    const step = 40 / k;
    const [x, y] = [(this.frame.left + this.frame.right) / 2, (this.frame.top + this.frame.bottom) / 2];
    const about = (factor) => {
      const to = Math.max(1, Math.min(60, k * factor));
      return to === 1 ? d3.zoomIdentity : d3.zoomIdentity.translate(x, y).scale(to).translate(...this.transform.invert([x, y]).map((value) => -value));
    };
    const next = {
      '+': () => about(1.5), '=': () => about(1.5), '-': () => about(1 / 1.5), 0: () => d3.zoomIdentity,
      ArrowLeft: () => this.transform.translate(step, 0), ArrowRight: () => this.transform.translate(-step, 0),
      ArrowUp: () => this.transform.translate(0, step), ArrowDown: () => this.transform.translate(0, -step),
    }[event.key];
    if (!next || this.one || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    zoomed(this.zoom.constrain()(next(), [[this.frame.left, this.frame.top], [this.frame.right, this.frame.bottom]], [[this.frame.left, this.frame.top], [this.frame.right, this.frame.bottom]]));
  }

  /** Sets the content: model, points, axes ({name, values, logarithmic}), highlighted cluster, probe row. */
  set(shown) {
    this.shown = shown;
    this.one = shown.axes.length === 1;
    this.draw();
  }

  setTransform(transform) {
    this.transform = transform;
    this.front.__zoom = transform;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!this.shown || width === 0 || !this.stage.isConnected) return;
    this.frame = { left: 44, right: width - 6, top: 22, bottom: height - 40 };
    const ratio = devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [width * ratio, height * ratio];
    this.ink = this.canvas.getContext('2d');
    this.ink.scale(ratio, ratio);
    const { left, right, top, bottom } = this.frame;
    this.zoom.extent([[left, top], [right, bottom]]).translateExtent([[left, top], [right, bottom]]);
    this.tree = null;
    this.front.setAttribute('aria-label', this.words());
    if (this.one) this.histogram();
    else this.scatter();
  }

  words() {
    const { model, points } = this.shown;
    const parts = model.clusters.map((cluster) => `${described(cluster)}: ${percent(cluster.size / Math.max(1, model.rows))}`);
    const missing = imputedOf(model).map(({ feature, rows }) => t('imputed', { feature: pretty(feature), n: count(rows), all: count(model.rows) }));
    const [n, of] = [points.points.length, points.sampled_from];
    const words = this.one ? 'histogram_of' : 'scatter_of';
    return `${t(n < of ? `${words}_sample` : words, { n: count(n), of: count(of) })} ${[...parts, ...missing].join('; ')}`;
  }

  axis(i, from, to) {
    const { name, values, logarithmic } = this.shown.axes[i];
    const scale = scaleOf(values, logarithmic).range([from, to]);
    return { scale, logarithmic, feature: name, name: axisName(name, logarithmic) };
  }

  scatter() {
    const { left, right, top, bottom } = this.frame;
    const { model, points, highlighted } = this.shown;
    const [across, up] = [this.axis(0, left + 8, right - 8), this.axis(1, bottom - 8, top + 8)];
    across.scale = this.transform.rescaleX(across.scale);
    up.scale = this.transform.rescaleY(up.scale);
    drawAxes(this.ground, this.frame, across, up);
    const { ink } = this;
    ink.save();
    ink.beginPath();
    ink.rect(left, top, right - left, bottom - top);
    ink.clip();
    if (model.features.length === 2) this.paintGround(across, up);
    const [x, y] = [model.features.indexOf(across.feature), model.features.indexOf(up.feature)];
    this.places = points.points.map((point) => [across.scale(point.values[x]), up.scale(point.values[y]), point]);
    for (const cluster of model.clusters) {
      ink.fillStyle = colour(cluster.cluster);
      ink.strokeStyle = ink.fillStyle;
      ink.globalAlpha = highlighted === null || highlighted === cluster.cluster ? (points.points.length > 1500 ? 0.5 : 0.62) : 0.07;
      for (const [px, py, point] of this.places) {
        if (point.cluster !== cluster.cluster) continue;
        ink.beginPath();
        ink.arc(px, py, 2.4, 0, 7);
        if (isHollow(point, across.feature, up.feature)) ink.stroke();
        else ink.fill();
      }
    }
    ink.restore();
    this.front.replaceChildren(...this.centroids(across, up), ...this.probe(across, up));
  }

  /** The cluster whose centroid is nearest to a position, by the two axis features in scaled units. */
  nearest(across, up) {
    const { model } = this.shown;
    const [ofAcross, ofUp] = [scaledBy(model, across.feature), scaledBy(model, up.feature)];
    const centres = model.clusters.map(({ centroid }) => [ofAcross(centroid[across.feature]), ofUp(centroid[up.feature])]);
    return (px, py) => {
      const [u, v] = [ofAcross(across.scale.invert(px)), ofUp(up.scale.invert(py))];
      return d3.minIndex(centres, ([a, b]) => (a - u) ** 2 + (b - v) ** 2);
    };
  }

  /** Colours the background by the nearest centroid. */
  paintGround(across, up) {
    const { left, right, top, bottom } = this.frame;
    const nearestAt = this.nearest(across, up);
    const colours = this.shown.model.clusters.map((cluster) => colour(cluster.cluster));
    this.ink.globalAlpha = 0.075;
    for (let py = top; py < bottom; py += GROUND) {
      let [from, was] = [left, -1];
      for (let px = left; px <= right; px += GROUND) {
        const nearest = nearestAt(px + GROUND / 2, py + GROUND / 2);
        if (nearest === was && px + GROUND <= right) continue;
        if (was >= 0) {
          this.ink.fillStyle = colours[was];
          this.ink.fillRect(from, py, px - from, Math.min(GROUND, bottom - py));
        }
        [from, was] = [px, nearest];
      }
    }
  }

  centroids(across, up) {
    const { left, right, top, bottom } = this.frame;
    const bright = (cluster) => this.shown.highlighted === null || this.shown.highlighted === cluster.cluster;
    const places = this.shown.model.clusters
      .map((cluster) => {
        const [x, y] = [across.scale(cluster.centroid[across.feature]), up.scale(cluster.centroid[up.feature])];
        // A centroid outside the axes is shown at the edge.
        const at = { x: Math.max(left, Math.min(right, x)), y: Math.max(top, Math.min(bottom, y)) };
        return { cluster, ...at, outside: at.x !== x || at.y !== y, name: described(cluster) };
      });
    const badges = places.map(({ cluster, x, y, outside }) => svg(
      'g',
      { class: outside ? 'centroid outside' : 'centroid', opacity: bright(cluster) ? 1 : 0.35 },
      svg('circle', { class: `badge fill c${cluster.cluster % 8}`, cx: x, cy: y, r: 10.5 }),
      svg('text', { class: 'digit', x, y: y + 4 }, String(cluster.cluster)),
    ));
    // No label covers the area of another cluster, where the plane shows areas.
    const nearest = this.shown.model.features.length === 2 ? this.nearest(across, up) : null;
    const owns = (place, px, py) => !nearest || nearest(px, py) === place.cluster.cluster;
    const rest = places.filter(({ cluster, outside }) => bright(cluster) && outside);
    const names = labels(places.filter(({ cluster, outside }) => bright(cluster) && !outside), this.frame, [], owns, rest);
    // Names without room in their areas are below the plot, with their numbers.
    this.legend.replaceChildren(...rest.map(({ cluster, name }) => el('span', {}, badge(cluster.cluster), name)));
    return [...names, ...badges];
  }

  /** The probe row, at the edge if it lies outside. */
  probe(across, up) {
    const { probe } = this.shown;
    if (!probe) return [];
    const { left, right, top, bottom } = this.frame;
    const within = (value, low, high) => Math.max(low, Math.min(high, value));
    const x = within(across.scale(probe[across.feature]), left, right);
    const y = up ? within(up.scale(probe[up.feature]), top, bottom) : top + 8;
    const star = d3.symbol(d3.symbolStar, 150)();
    return [svg('g', { class: 'probe', transform: `translate(${x},${y})` }, svg('circle', { class: 'ring', r: 15 }), svg('path', { class: 'mark', d: star }))];
  }

  histogram() {
    const { left, right, top, bottom } = this.frame;
    const { model, points, highlighted } = this.shown;
    const across = this.axis(0, left, right);
    const width = (right - left) / BARS;
    const empty = () => Array.from({ length: BARS }, () => new Array(model.clusters.length).fill(0));
    const [bars, hollow] = [empty(), empty()];
    for (const point of points.points) {
      const bar = Math.max(0, Math.min(BARS - 1, Math.floor((across.scale(point.values[0]) - left) / width)));
      bars[bar][point.cluster] += 1;
      if (isHollow(point, across.feature)) hollow[bar][point.cluster] += 1;
    }
    const most = d3.max(bars, (bar) => d3.sum(bar)) || 1;
    const up = { scale: d3.scaleLinear([0, most], [bottom, top + 14]), logarithmic: false, name: t('rows_of_sample') };
    drawAxes(this.ground, this.frame, across, up);
    bars.forEach((bar, i) => {
      let below = 0;
      bar.forEach((rows, cluster) => {
        this.ink.fillStyle = colour(cluster);
        this.ink.globalAlpha = highlighted === null || highlighted === cluster ? 0.85 : 0.12;
        const observed = below + rows - hollow[i][cluster];
        this.ink.fillRect(left + i * width + 0.5, up.scale(observed), Math.max(1, width - 1), up.scale(below) - up.scale(observed));
        below += rows;
        if (observed === below) return;
        this.ink.strokeStyle = this.ink.fillStyle;
        this.ink.strokeRect(left + i * width + 1, up.scale(below) + 0.5, Math.max(1, width - 2), Math.max(1, up.scale(observed) - up.scale(below) - 1));
      });
    });
    this.bars = { bars, hollow, across, width };
    const line = cutsOf(model).map((cut) => across.scale(cut));
    const cuts = cutsOf(model).flatMap((cut, i) => [
      svg('line', { class: 'cut', x1: line[i], x2: line[i], y1: top, y2: bottom }),
      svg('text', { class: 'name halo', x: line[i] + 5, y: top + 10 }, number(cut, 3)),
    ]);
    this.front.replaceChildren(...cuts, ...this.probe(across, null));
  }

  hover(event) {
    if (!this.frame) return;
    const [x, y] = d3.pointer(event, this.front);
    if (this.one) {
      const { bars, hollow, across, width } = this.bars;
      const i = Math.floor((x - this.frame.left) / width);
      if (!bars[i]) return this.leave();
      const [from, to] = [across.scale.invert(this.frame.left + i * width), across.scale.invert(this.frame.left + (i + 1) * width)];
      const parts = this.shown.model.clusters.filter((cluster) => bars[i][cluster.cluster] > 0);
      return tip(event.clientX, event.clientY, `${number(from, 3)} – ${number(to, 3)}`, ...parts.map(({ cluster }, at) => `${described(parts[at])}: ${count(bars[i][cluster])}${hollow[i][cluster] > 0 ? ` (${t('of_them_missing', { n: count(hollow[i][cluster]) })})` : ''}`));
    }
    this.tree ??= d3.quadtree(this.places);
    const found = this.tree.find(x, y, NEAR);
    if (!found) return this.leave();
    const [, , point] = found;
    const { model } = this.shown;
    tip(
      event.clientX,
      event.clientY,
      described(model.clusters[point.cluster]),
      ...model.features.map((feature, i) => `${pretty(feature)}: ${number(point.values[i])}${isHollow(point, feature) ? ` (${t('was_missing')})` : ''}`),
      // A point of a segmentation of entities names none.
      ...(point.partition === undefined ? [] : [t('place', { partition: point.partition, offset: count(point.offset) })]),
    );
    this.ring(found);
    return undefined;
  }

  ring([x, y]) {
    this.front.querySelector('.here')?.remove();
    this.front.append(svg('circle', { class: 'ring here', cx: x, cy: y, r: 6 }));
  }

  leave() {
    this.front.querySelector('.here')?.remove();
    hideTip();
  }
}

/** Features with missing values in the model's rows, with their counts; absent in models of older versions. */
export const imputedOf = (model) => model.features.map((feature) => ({ feature, rows: model.imputed?.[feature] ?? 0 })).filter(({ rows }) => rows > 0);

/** Whether one of these features was imputed in the record. */
const isHollow = (point, ...features) => point.imputed?.some((feature) => features.includes(feature)) ?? false;

/** Boundaries between the clusters of a single feature. */
export function cutsOf(model) {
  const centres = model.clusters.map((cluster) => cluster.centroid[model.features[0]]).sort((a, b) => a - b);
  const [to, from] = isLogScaled(model, model.features[0]) ? [Math.log1p, Math.expm1] : [(value) => value, (value) => value];
  return centres.slice(1).map((centre, i) => from((to(centre) + to(centres[i])) / 2));
}
