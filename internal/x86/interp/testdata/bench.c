typedef unsigned long u64; typedef unsigned int u32; typedef unsigned char u8;
// Each returns a checksum in rax; run with rsp valid, then hlt.
__attribute__((noinline)) u64 alu(u64 n){u64 a=1,b=2,c=3;for(u64 i=0;i<n;i++){a+=b^i;b=(b<<3)-a;c^=a&b;c+=i;}return a+b+c;}
__attribute__((noinline)) u64 fib(u64 n){return n<2?n:fib(n-1)+fib(n-2);}
static u8 buf[65536];
__attribute__((noinline)) u64 crc(u64 n){u32 t[256];for(u32 i=0;i<256;i++){u32 c=i;for(int k=0;k<8;k++)c=c&1?0xEDB88320^(c>>1):c>>1;t[i]=c;}u32 c=~0;for(u64 r=0;r<n;r++)for(int i=0;i<65536;i++)c=t[(u8)c^buf[i]]^(c>>8);return c;}
static u32 arr[16384];
__attribute__((noinline)) void qs(u32*a,long l,long r){while(l<r){u32 p=a[(l+r)/2];long i=l,j=r;while(i<=j){while(a[i]<p)i++;while(a[j]>p)j--;if(i<=j){u32 t=a[i];a[i]=a[j];a[j]=t;i++;j--;}}if(j-l<r-i){qs(a,l,j);l=i;}else{qs(a,i,r);r=j;}}}
__attribute__((noinline)) u64 qsort_(u64 n){u64 s=0;for(u64 r=0;r<n;r++){u32 x=12345;for(int i=0;i<16384;i++){x=x*1664525+1013904223;arr[i]=x>>3;}qs(arr,0,16383);s+=arr[7]+arr[16000];}return s;}
__attribute__((noinline)) u64 hash(u64 n){u64 s=0;u32 x=1;for(u64 r=0;r<n;r++){x=x*1664525+1013904223;u32 h=(x>>7)&16383;arr[h]+=x;s+=arr[(h*31)&16383];}return s;}
u64 start(u64 which,u64 n){switch(which){case 0:return alu(n);case 1:return fib(n);case 2:return crc(n);case 3:return qsort_(n);default:return hash(n);}}
