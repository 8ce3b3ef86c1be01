"""How Sphinx builds the site: `sphinx-build -W --keep-going -c docs . docs/_build/html`.

The sources are the whole checkout, so that the links between pages, README files and tables of
results are the same on the site as in the repository.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "inrjax"
author = "the inrjax authors"
project_copyright = author
version = release = installed_version("inrjax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sitetools",
]

root_doc = "docs/index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
include_patterns = [
    "docs/*.md",
    "docs/howto/*.md",
    "docs/reference/*.md",
    "docs/reference/generated/*.rst",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "results/README.md",
    "results/published/README.md",
    "results/*/*/table.md",
]
exclude_patterns = [
    ".*", "docs/_*", "inrjax", "tests", "experiments", "notebooks", "runs", "build", "dist",
]  # fmt: skip

# Docstrings: single backticks are names of Python objects where there is one, code otherwise.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
autosummary_generate = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # it cannot take two names in one line
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
copybutton_prompt_text = "$ "

templates_path = [str(Path(__file__).parent / "_templates")]  # autosummary takes no relative one
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_theme = "pydata_sphinx_theme"
html_title = "inrjax"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "inrjax"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_sidebars = {
    "docs/index": [],
    "docs/tutorial": [],
    "docs/method": [],
    "docs/notebooks": [],
    "docs/bitstream": [],
    "docs/reliability": [],
    "docs/scaling": [],
    "CHANGELOG": [],
    "CONTRIBUTING": [],
    "SECURITY": [],
}
