#!/bin/sh
# Puts sive's packages, copied to FOLDER/src, into the virtual environment FOLDER, with the command `sive`.
#   serve/image/finish.sh FOLDER
# They are compiled now: whoever runs them may not write here, and would compile them at every start.
set -eu
folder=$1
for packages in "$folder"/lib/python3*/site-packages; do
    echo ../../../src >"$packages/sive.pth"
done
cat >"$folder/bin/sive" <<END
#!$folder/bin/python3
from sive_serve.cli import main

main()
END
chmod +x "$folder/bin/sive"
chmod -R a+rX "$folder" # a checkout may be its owner's alone, and who runs this is somebody else
"$folder/bin/python3" -m compileall -q "$folder/src"
"$folder/bin/sive" version
