# Locks files from within a container, or on the host. KIND is flock, posix or ofd.
#
# lock FILE KIND try|wait         locks a file for itself, says `locked` or `busy`, and waits for a line before it ends
# count FILE KIND TIMES [OTHER]   so many times: locks FILE, adds one to the number in it (or in OTHER), unlocks; holds both open
# look FILE KIND NAME             says whether there is NAME and its size; after a line it locks FILE and says it again
# open FILE TIMES                 opens a file so often at a time, and says how often it could
# map FILE                        maps the first page and obeys: put AT TEXT, get AT LENGTH, lock, unlock, sync, end
$| = 1;
my ($what, $path, $how, @rest) = @ARGV;
open(my $file, "+<", $path) or die "open: $!";

# fcntl.h: F_SETLK is 6, F_SETLKW 7, F_OFD_SETLK 37, F_OFD_SETLKW 38; F_WRLCK is 1, F_UNLCK 2.
sub fcntl_lock { fcntl($file, ($how eq "ofd" ? 37 : 6) + $_[1], pack("s s x4 q q i x4", $_[0], 0, 0, 0, 0)) }
sub lock { $how eq "flock" ? flock($file, $_[0] ? 2 : 6) : fcntl_lock(1, $_[0]) }
sub unlock { ($how eq "flock" ? flock($file, 8) : fcntl_lock(2, 1)) or die "unlock: $!" }

if ($what eq "lock") {
    print lock($rest[0] eq "wait") ? "locked\n" : $!+0 == 11 ? "busy\n" : "$!\n";
    <STDIN>;
} elsif ($what eq "count") {
    my ($times, $other) = @rest;
    my $data = $file;
    if ($other) { open($data, "+<", $other) or die "open: $!" }
    my $read = sub { sysseek($data, 0, 0); sysread($data, my $number, 16) == 16 or die "short: $!"; $number };
    for (1 .. $times) {
        # What is known before the lock is not to be believed under it.
        $read->();
        lock(1) or die "lock: $!";
        my $number = $read->();
        sysseek($data, 0, 0);
        syswrite($data, sprintf("%016d", $number + 1)) == 16 or die "write: $!";
        unlock();
    }
    print "counted\n";
} elsif ($what eq "open") {
    my @open;
    for (1 .. $how) { open(my $one, "<", $path) or last; push @open, $one }
    print scalar(@open), "\n";
} elsif ($what eq "look") {
    my $say = sub { my @stat = stat($rest[0]); print @stat ? "$stat[7] bytes\n" : "nothing\n" };
    $say->();
    <STDIN>;
    lock(1) or die "lock: $!";
    $say->();
} elsif ($what eq "map") {
    # System calls 9 and 26 are mmap(2) and msync(2); protection 3 is reading and writing, flag 1 is shared, 4 is MS_SYNC.
    my $at = syscall(9, 0, 4096, 3, 1, fileno($file), 0);
    pipe(my $out, my $in) or die "pipe: $!";
    $how = "flock";
    print "mapped\n";
    while (my $line = <STDIN>) {
        my ($verb, $offset, $value) = split " ", $line;
        if ($verb eq "put") {
            syswrite($in, $value);
            # read(2) and write(2), of a pipe: perl itself reaches no memory.
            syscall(0, fileno($out), $at + $offset, length $value) == length $value or die "put: $!";
        } elsif ($verb eq "get") {
            syscall(1, fileno($in), $at + $offset, $value + 0) == $value or die "get: $!";
            sysread($out, $value, $value);
            print "$value\n";
            next;
        } elsif ($verb eq "lock") { lock(1) or die "lock: $!" }
        elsif ($verb eq "unlock") { unlock() }
        elsif ($verb eq "end") { last }
        elsif ($verb eq "sync") { syscall(26, $at, 4096, 4) == 0 or die "msync: $!" }
        print "done\n";
    }
}
