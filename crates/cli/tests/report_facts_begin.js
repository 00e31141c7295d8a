// Runs before any other script of the page under test.
window.facts = { errors: [], downloads: [] };
window.addEventListener("error", (event) => facts.errors.push(String(event.message)));
window.addEventListener("unhandledrejection", (event) => facts.errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) =>
  facts.errors.push(`policy: ${event.violatedDirective} ${event.blockedURI}`));
for (const level of ["error", "warn"]) {
  console[level] = (...parts) => facts.errors.push(parts.join(" "));
}
const originalCreateObjectURL = URL.createObjectURL;
window.pendingDownloads = [];
URL.createObjectURL = (blob) => {
  pendingDownloads.push(blob.text().then((text) => facts.downloads.push(text)));
  return originalCreateObjectURL(blob);
};
