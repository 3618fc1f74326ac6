# Sourced: packs an initrd without cpio, which many machines lack.
# newc NAME FILE MODE: one entry of a "newc" archive; FILE '' for what has no content.
newc() {
	local size=0; [ -z "$2" ] || size=$(stat -c %s "$2")
	printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\0' \
		0 "$3" 0 0 1 0 "$size" 0 0 0 0 $((${#1} + 1)) 0 "$1"
	head -c $(((4 - (110 + ${#1} + 1) % 4) % 4)) /dev/zero
	[ -z "$2" ] || { cat "$2"; head -c $(((4 - size % 4) % 4)) /dev/zero; }
}
newc_end() { newc 'TRAILER!!!' '' 0; }
