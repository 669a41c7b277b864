// Chinese names and tooltips in front ends that lose them: around version 1.32 a language is loaded after the packs'
// own texts were merged into it, and takes their place. Elsewhere the texts are there, and this does nothing.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const KNOWN = "nodeDefs.EAM_LoadModel.display_name";
const PATIENCE = 5000; // ms for the front end to load a language
const PAUSE = 50;

/** The front end's translations: what vue-i18n gives to the page; undefined where it keeps them elsewhere. */
function translations() {
  const shared = document.getElementById("vue-app")?.__vue_app__?._context?.provides ?? {};
  return Object.getOwnPropertySymbols(shared)
    .map((key) => shared[key]?.global)
    .find((found) => found?.mergeLocaleMessage && found?.te);
}

/** Only this pack's part of what the server has for a language. */
function ours(messages) {
  const nodes = Object.entries(messages?.nodeDefs ?? {}).filter(([name]) => name.startsWith("EAM_"));
  return { nodeDefs: Object.fromEntries(nodes), nodeCategories: { EAM: messages?.nodeCategories?.EAM ?? "EAM" } };
}

async function complete() {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale");
  const i18n = translations();
  if (!i18n || !locale || locale === "en") return;
  const given = (await (await api.fetchApi("/i18n")).json())[locale];
  if (!given?.nodeDefs) return;
  const last = Date.now() + PATIENCE;
  while (!i18n.te("nodeDefs.KSampler.display_name", locale)) {
    if (Date.now() > last) return;
    await new Promise((done) => setTimeout(done, PAUSE));
  }
  if (!i18n.te(KNOWN, locale)) i18n.mergeLocaleMessage(locale, ours(given));
}

app.registerExtension({
  name: "EAM.Locale",
  // Before the front end asks for the nodes, whose names it translates once.
  async init() {
    try {
      await complete();
    } catch (error) {
      console.warn("EAM: names in your language could not be loaded", error);
    }
  },
});
