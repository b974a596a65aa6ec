"use strict";
// A plotly map fetches its topology from a server unless it finds it here.
window.PlotlyGeoAssets = window.PlotlyGeoAssets || { topojson: {} };
window.PlotlyGeoAssets.topojson.world_110m = JSON.parse(document.getElementById("topology").textContent);

const page = JSON.parse(document.getElementById("page-data").textContent);
const element = (id) => document.getElementById(id);

// ---- figures ----

const narrow = window.matchMedia("(max-width: 560px)");

// A copy that suits the screen: what fits a desk (long axis titles, many ticks, large points) does not fit a phone.
function fitted(figure) {
  const { data, layout } = structuredClone({ data: figure.data, layout: figure.layout });
  if (!narrow.matches) return { data, layout };
  layout.font = { ...layout.font, size: 11.5 };
  layout.margin = { ...layout.margin, r: 20 };
  const axis = layout.xaxis;
  if (axis?.title?.text) axis.title.text = axis.title.text.replace(" · log scale", " (log)");
  if (axis?.tickvals?.length > 4) {
    const every = Math.ceil(axis.tickvals.length / 4);
    axis.tickvals = axis.tickvals.filter((_, index) => index % every === 0);
    axis.ticktext = axis.ticktext.filter((_, index) => index % every === 0);
  }
  if (axis?.nticks > 4) axis.nticks = 4; // else plotly turns the labels on their side
  if (layout.geo) {
    layout.height = 260;
    layout.coloraxis.colorbar.len = 0.9;
  }
  for (const trace of data) {
    if (trace.type === "scattergeo" && trace.text) trace.marker.size = 3.5;
    if (trace.type === "heatmap") {
      trace.colorbar = { ...trace.colorbar, len: 1, nticks: 4, tickangle: 0 };
      trace.colorbar.title.text = "against the zone's year";
      Object.assign(axis, { tickmode: "array", tickvals: trace.x, ticktext: trace.x.map((month) => month[0]) });
    }
  }
  return { data, layout };
}

window.drawn = 0;
for (const [id, figure] of Object.entries(page.figures)) {
  const { data, layout } = fitted(figure);
  const plot = element(`plot-${id}`);
  plot.style.minHeight = `${layout.height}px`;
  Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false, scrollZoom: false })
    .then(() => { window.drawn += 1; });
}

// ---- prices: the same energy in another zone or month ----

const price = page.price;
const prefixed = (value, units) => {
  const [factor, unit] = units.find(([size]) => Math.abs(value) >= size || (value === 0 && size === 1)) || units[units.length - 1];
  const scaled = Number((value / factor).toPrecision(3));
  return `${scaled.toLocaleString("en", { maximumFractionDigits: 12 })} ${unit}`;
};
const massText = (grams) => prefixed(grams, [[1e6, "t"], [1e3, "kg"], [1, "g"], [1e-3, "mg"], [1e-6, "µg"]]);
const distanceText = (km) => prefixed(km, [[1, "km"], [1e-3, "m"], [1e-5, "cm"]]);

// Total of the study in grams, with its phases, at the selected zone and time. `intensity` null: as the study was priced.
function priced(zone, when) {
  if (when === "run") return { ...price.as_run, intensity: null };
  const entry = price.zones[zone];
  const intensity = when === "year" ? entry.year : entry.months[Number(when) - 1];
  const grams = (kwh) => kwh * price.pue * intensity;
  return {
    intensity,
    total_g: grams(price.energy_kwh),
    low_g: grams(price.energy_low_kwh),
    high_g: grams(price.energy_high_kwh),
    phases_g: Object.fromEntries(Object.entries(price.phases_kwh).map(([key, kwh]) => [key, grams(kwh)])),
  };
}

function explain(zone, when, result) {
  const entry = price.zones[zone];
  const against = `${Number((result.total_g / price.as_run.total_g).toPrecision(2))} times what the study emitted as it ran.`;
  if (when === "run") return price.note;
  const yearly = entry.months ? "" : ` ${entry.name} has an annual value only: no months to choose from.`;
  const moment = when === "year" ? "over a year" : `in ${price.months[Number(when) - 1]}`;
  return `${entry.name} ${moment}: ${Math.round(result.intensity)} g per kWh, ${against}${yearly}`;
}

function reprice() {
  const zone = element("zone-select").value;
  const month = element("month-select");
  const entry = price.zones[zone];
  for (const option of month.options) {
    option.disabled = option.value === "run" ? zone !== price.zone : option.value !== "year" && !entry.months;
  }
  if (month.selectedOptions[0].disabled) month.value = "year";
  const when = month.value;
  const result = priced(zone, when);
  element("card-emissions").textContent = massText(result.total_g);
  element("card-emissions-note").textContent = `${massText(result.low_g)} to ${massText(result.high_g)}`;
  element("card-car").textContent = distanceText(result.total_g / price.car_g_per_km);
  for (const [key, grams] of Object.entries(result.phases_g)) element(`phase-${key}`).textContent = massText(grams);
  element("price-note").textContent = explain(zone, when, result);
  element("price-reset").hidden = when === "run" && zone === price.zone;
}

element("price-form").addEventListener("change", reprice);
element("price-form").addEventListener("submit", (event) => event.preventDefault());
element("price-reset").addEventListener("click", () => {
  element("zone-select").value = price.zone;
  element("month-select").options[0].disabled = false;
  element("month-select").value = "run";
  reprice();
});
reprice();
