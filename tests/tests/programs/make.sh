mkdir /srv/project
cd /srv/project
for n in 1 2 3 4 5; do
  printf '#include "common.h"\nint f%s(void) { return COMMON + %s; }\n' $n $n >f$n.c
done
echo '#define COMMON 10' >common.h
{
  for n in 1 2 3 4 5; do echo "int f$n(void);"; done
  echo 'int main(void) { return f1() + f2() + f3() + f4() + f5(); }'
} >main.c
cat >Makefile <<'END'
objects = main.o f1.o f2.o f3.o f4.o f5.o
program: libf.a main.o
	cc -o $@ main.o libf.a
libf.a: $(filter-out main.o,$(objects))
	ar rcs $@ $?
%.o: %.c
	cc -c -MMD -o $@ $<
-include $(objects:.o=.d)
END
count() { grep -c '^cc -c' log || true; }

make -j2 >log
[ "$(count)" = 6 ]
code=0; ./program || code=$?
[ $code = 65 ]
make >log
[ "$(count)" = 0 ]
grep -q 'up to date' log

sed -i 's/+ 3/+ 30/' f3.c
make >log
[ "$(count)" = 1 ]
code=0; ./program || code=$?
[ $code = 92 ]
touch common.h
make -j2 >log
[ "$(count)" = 5 ]

# The same objects out of a tree on a volume, bit by bit.
cp -a /srv/project /volume/project
cd /volume/project
make >log
[ "$(count)" = 0 ]
rm f1.o libf.a program
make >log
cmp f1.o /srv/project/f1.o
./program || [ $? = 92 ]
