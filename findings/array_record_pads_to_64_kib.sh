#!/usr/bin/env bash
# The size of an array_record file tells next to nothing about what is in it: it is a multiple of 64 KiB.
#
# Versions: array-record 0.8.6 (Linux), Python 3.11.
# A good guess: a file with more or longer records is longer, so that sizes, as rsync or a quick check compares
# them, tell a changed set from the old one.
# Seen: the writer pads to 64 KiB as it closes. Files of one record of ten bytes, of one of a thousand, and of a hundred
# records of twenty are 131,072 bytes each.
#
# Output seen:
#   1 record of 10 bytes: 131072 bytes
#   1 record of 1000 bytes: 131072 bytes
#   100 records of 20 bytes: 131072 bytes
#   1000 records of 200 bytes: 393216 bytes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet array-record==0.8.6
cd "$work"
"$work/venv/bin/python" - <<'PY' | tee "$work/seen"
import os
import random

from array_record.python.array_record_module import ArrayRecordWriter

for count, length in ((1, 10), (1, 1000), (100, 20), (1000, 200)):
    draw = random.Random(0)
    writer = ArrayRecordWriter("records", "group_size:1")
    for _ in range(count):
        writer.write(draw.randbytes(length))
    writer.close()
    print(f"{count} record{'s' * (count > 1)} of {length} bytes: {os.path.getsize('records')} bytes")
PY
diff "$work/seen" - <<'SEEN'
1 record of 10 bytes: 131072 bytes
1 record of 1000 bytes: 131072 bytes
100 records of 20 bytes: 131072 bytes
1000 records of 200 bytes: 393216 bytes
SEEN
