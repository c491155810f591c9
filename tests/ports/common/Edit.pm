# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# Edits of a server's sources that name functions, variables and statements, not lines. Each edit must be found, so
# another version either builds the same port or is refused.
package Edit;
use strict;
use warnings;
use Exporter 'import';

our @EXPORT = qw(sources in_file all within without moved save);

my ($folder, $file, $text);

# Where the sources are.
sub sources {
    $folder = shift // die "usage: $0 FOLDER\n";
}

# Writes the file that is being edited.
sub save {
    return unless defined $file;
    open(my $out, '>', $file) or die "$file: $!\n";
    print $out $text;
    close($out) or die "$file: $!\n";
    $file = undef;
}

# Edits that follow are of this file.
sub in_file {
    save();
    $file = "$folder/$_[0]";
    open(my $in, '<', $file) or die "$file: $!\n";
    local $/;
    $text = <$in>;
}

# Replaces what matches, everywhere in the file.
sub all {
    my ($pattern, $new) = @_;
    my $found = $text =~ s/$pattern/ref $new ? $new->() : $new/ge;
    die "$file: not found: $pattern\n" unless $found;
}

# The definition of a function.
sub definition {
    my ($function) = @_;
    return qr/^[a-z][^\n;=]*\b\Q$function\E\([^;{]*\)\s*\{.*?^\}/ms;
}

# Replaces what matches, everywhere in the definition of a function.
sub within {
    my ($function, $pattern, $new) = @_;
    my $found = 0;
    my $edit = sub {
        my $body = shift;
        $found += $body =~ s/$pattern/ref $new ? $new->() : $new/ge;
        return $body;
    };
    my $definition = definition($function);
    $text =~ s/($definition)/$edit->($1)/ge;
    die "$file: $function: not found: $pattern\n" unless $found;
}

# Removes the definition of a function, and its declarations.
sub without {
    my ($function) = @_;
    my $definition = definition($function);
    my $found = $text =~ s/$definition\n//g;
    die "$file: $function: not found\n" unless $found;
    $text =~ s/^[a-z][^\n;=]*\b\Q$function\E\([^;{]*\);\n//gm;
}

# Moves statements of a function into a new one in front of it, which begins with these lines, and replaces them.
sub moved {
    my ($function, $pattern, $head, $new) = @_;
    my $moved;
    my $edit = sub {
        my $body = shift;
        $body =~ s/($pattern)/$moved = $1; $new/e;
        return defined $moved ? "$head\{\n$moved}\n\n$body" : $body;
    };
    my $definition = definition($function);
    $text =~ s/($definition)/$edit->($1)/e;
    die "$file: $function: not found: $pattern\n" unless defined $moved;
}

1;
