"""Pictures of figures, drawn by matplotlib where that is installed: one look for all (style.py), as files and in pages
(files.py). What is drawn comes from whoever measured or predicted it; nothing here measures."""
