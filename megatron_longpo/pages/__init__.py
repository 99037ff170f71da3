"""Parts of the HTML reports: escaped markup, figures as SVG, one style sheet. A page is one file, without scripts."""
