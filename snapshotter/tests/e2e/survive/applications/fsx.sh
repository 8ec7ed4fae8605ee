# Random reads, writes and mappings of one file, each read compared with what was written: a file of
# the image and a new one in turn, in rounds as scripts/fsx has them.
mkdir -p /srv/fsx
cp /load/fsx.toml /outside/fsx.toml
count=0
while [ ! -e /outside/stop ]; do
    count=$((count + 1))
    file=/srv/fsx/new
    [ $((count % 2)) = 0 ] || file=/load/fsx.image
    /load/fsx -q -N 5000 -S "$count" -f /outside/fsx.toml -P /outside "$file"
done
echo "$count rounds of 5000 operations"
