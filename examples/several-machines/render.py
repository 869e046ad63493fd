"""Ten lines that bring upstreams into the file: `python render.py HEAD LIST FILE`.

HEAD is the configuration without upstreams. LIST has a line "NAME ADDRESS PORT" for each: it stands
for what a registry tells (Consul, DNS, a cloud's API), or for a file that git brings. FILE is what
Atlas watches. It is written only when something is different, and whole, since it comes with one
rename.
"""

import sys
import time
from pathlib import Path

head, listed, file = map(Path, sys.argv[1:])
while True:
    text = head.read_text()
    for name, address, port in map(str.split, sorted(listed.read_text().splitlines())):
        text += f'\n[[upstreams]]\nname = "{name}"\naddress = "{address}"\nport = {port}\n'
    if not file.exists() or file.read_text() != text:
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file)
    time.sleep(1)
