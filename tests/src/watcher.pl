# Watches directories and files by inotify(7), from within a container.
#
# watch MASK PATH…   says `ready`, then each event: its names, then the path's number, a slash and the name in it; a rename's halves bear the
#                    same number; ends with the event of a name `end`
# count-made PATH    says `ready`, then how many names were made and whether events are missing, once `end` is made or some are missing
$| = 1;
my ($what, @rest) = @ARGV;
my @names = qw(ACCESS MODIFY ATTRIB CLOSE_WRITE CLOSE_NOWRITE OPEN MOVED_FROM MOVED_TO CREATE DELETE DELETE_SELF MOVE_SELF);
my %more = (13 => "UNMOUNT", 14 => "OVERFLOW", 15 => "IGNORED", 30 => "ISDIR");

my $fd = syscall(294, 0);
$fd >= 0 or die "inotify_init1: $!";
open(my $events, "<&=", $fd) or die "inotify: $!";
my %paths;
sub watch {
    my ($path, $mask) = @_;
    my $watch = syscall(254, $fd, $path, $mask + 0);
    $watch >= 0 or die "inotify_add_watch: $!";
    $paths{$watch} = scalar keys %paths;
}
# The next events: watch, mask, cookie, name.
sub take {
    my @all;
    my $got = sysread($events, my $bytes, 65536) or die "read: $!";
    for (my $at = 0; $at < $got;) {
        my ($watch, $mask, $cookie, $length) = unpack("l L L L", substr($bytes, $at, 16));
        my $name = unpack("Z*", substr($bytes, $at + 16, $length));
        push @all, [$watch, $mask, $cookie, $name];
        $at += 16 + $length;
    }
    return @all;
}

if ($what eq "watch") {
    my ($mask, @paths) = @rest;
    watch($_, oct($mask)) for @paths;
    print "ready\n";
    my (%cookies, $renames, $end);
    until ($end) {
        for (take()) {
            my ($watch, $mask, $cookie, $name) = @$_;
            my @what = map { $mask >> $_ & 1 ? $names[$_] // $more{$_} // $_ : () } 0 .. 31;
            my $move = $cookie ? " " . ($cookies{$cookie} //= ++$renames) : "";
            print join("|", @what), " ", $paths{$watch} // "", "/$name$move\n";
            $end = 1 if $name eq "end";
        }
    }
} elsif ($what eq "count-made") {
    watch($rest[0], 0x100);
    print "ready\n";
    my ($made, $missing, $end) = (0, 0, 0);
    until ($end) {
        for (take()) {
            my (undef, $mask, undef, $name) = @$_;
            $missing = 1 if $mask & 0x4000;
            $made++ if $mask & 0x100 && $name ne "end";
            $end = 1 if $name eq "end" || $missing;
        }
    }
    print "$made made", $missing ? ", some missing" : "", "\n";
}
